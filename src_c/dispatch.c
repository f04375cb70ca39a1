/* dispatch.c -- the table of kernel sets, best first. Adding an ISA adds a row. */
#include "cpu.h"
#include "cylstm.h"
#include "kernels/compact.h"

#include <stdatomic.h>
#include <string.h>

static int always(void) { return 1; }

static const struct {
    const char *isa;
    int (*usable)(void);
    const struct cylstm_kernels *f32, *f64;
} table[] = {
#if CYLSTM_X86
    {"avx512", cylstm_cpu_has_avx512, &cylstm_kernels_avx512_f32, &cylstm_kernels_avx512_f64},
    {"avx2", cylstm_cpu_has_avx2_fma, &cylstm_kernels_avx2_f32, &cylstm_kernels_avx2_f64},
    {"sse2", always, &cylstm_kernels_sse2_f32, &cylstm_kernels_sse2_f64},
#endif
#if CYLSTM_AARCH64
    {"neon", always, &cylstm_kernels_neon_f32, &cylstm_kernels_neon_f64},
#endif
    {"scalar", always, &cylstm_kernels_scalar_f32, &cylstm_kernels_scalar_f64},
};

enum { ROWS = sizeof table / sizeof table[0] };

size_t cylstm_isa_count(void) { return ROWS; }
const char *cylstm_isa_name(size_t n) { return table[n].isa; }
/* Asked once: under a hypervisor CPUID costs tens of microseconds. The answer is 0 before, then 1 + it. */
static int is_usable(atomic_int *answer, int (*usable)(void))
{
    int known = atomic_load_explicit(answer, memory_order_relaxed);
    if (!known) {
        known = 1 + usable();
        atomic_store_explicit(answer, known, memory_order_relaxed);
    }
    return known - 1;
}

int cylstm_isa_usable(size_t n)
{
    static atomic_int answer[ROWS];
    return is_usable(&answer[n], table[n].usable);
}

const struct cylstm_kernels *cylstm_find_kernels(const char *isa, int bits)
{
    for (size_t n = 0; n < cylstm_isa_count(); n++)
        if ((!isa || !strcmp(isa, table[n].isa)) && cylstm_isa_usable(n))
            return bits == 32 ? table[n].f32 : bits == 64 ? table[n].f64 : NULL;
    return NULL;
}

const char *cylstm_kernels_isa(const struct cylstm_kernels *kernels) { return kernels->isa; }

/* Adding a way of multiplying int8 adds a row: it serves the float32 sets of as many lanes. */
static const struct {
    const struct cylstm_compact_kernels *kernels;
    int (*usable)(void);
} int8_table[] = {
#if CYLSTM_X86
    {&cylstm_int8_avx512vnni, cylstm_cpu_has_avx512_vnni},
    {&cylstm_int8_avx512, cylstm_cpu_has_avx512},
    {&cylstm_int8_avxvnni, cylstm_cpu_has_avx_vnni},
    {&cylstm_int8_avx2, cylstm_cpu_has_avx2_fma},
    {&cylstm_int8_sse2, always},
#endif
#if CYLSTM_AARCH64
    {&cylstm_int8_neondot, cylstm_cpu_has_dotprod},
    {&cylstm_int8_neon, always},
#endif
    {&cylstm_int8_scalar, always},
};

size_t cylstm_int8_count(void) { return sizeof int8_table / sizeof *int8_table; }
const char *cylstm_int8_name(size_t n) { return int8_table[n].kernels->name; }

const struct cylstm_compact_kernels *cylstm_find_int8(const char *name,
                                                      const struct cylstm_kernels *kernels)
{
    static atomic_int answer[sizeof int8_table / sizeof *int8_table];
    for (size_t n = 0; n < cylstm_int8_count(); n++) {
        const struct cylstm_compact_kernels *k = int8_table[n].kernels;
        if (k->lanes != kernels->lanes || kernels->bits != 32 || (name && strcmp(name, k->name)))
            continue;
        if (!name && !strcmp(kernels->isa, "scalar") && strcmp(k->name, "scalar")) continue;
        if (is_usable(&answer[n], int8_table[n].usable)) return k;
    }
    return NULL;
}

/* Products of bfloat16: one way at most for a kernel set, which it is named after. */
static const struct {
    const char *isa;
    const struct cylstm_compact_kernels *kernels;
    int (*usable)(void);
} bf16_table[] = {
#if CYLSTM_X86
    {"avx512", &cylstm_bf16_avx512, cylstm_cpu_has_avx512_bf16},
#endif
#if CYLSTM_AARCH64
    {"neon", &cylstm_bf16_neon, cylstm_cpu_has_bfdot},
#endif
    {"scalar", &cylstm_bf16_scalar, always},
};

const struct cylstm_compact_kernels *cylstm_find_bf16(const struct cylstm_kernels *kernels)
{
    enum { COUNT = sizeof bf16_table / sizeof *bf16_table };
    static atomic_int answer[COUNT];
    for (size_t n = 0; n < COUNT; n++)
        if (kernels->bits == 32 && !strcmp(bf16_table[n].isa, kernels->isa))
            return is_usable(&answer[n], bf16_table[n].usable) ? bf16_table[n].kernels : NULL;
    return NULL;
}

const char *cylstm_bf16_kernels_name(const struct cylstm_compact_kernels *kernels)
{
    return kernels->name;
}

const char *cylstm_int8_kernels_name(const struct cylstm_compact_kernels *kernels)
{
    return kernels->name;
}

void cylstm_apply_activation(const struct cylstm_kernels *kernels, int is_tanh, const void *x,
                             void *y, size_t n)
{
    const uint32_t mode = cylstm_enter_float_mode();
    (is_tanh ? kernels->tanh : kernels->sigmoid)(x, y, n);
    cylstm_leave_float_mode(mode);
}

int cylstm_init_context(struct cylstm_context *ctx, const char *isa, int bits)
{
    *ctx = (struct cylstm_context){.kernels = cylstm_find_kernels(isa, bits), .threads = 1};
    if (ctx->kernels) {
        ctx->int8 = cylstm_find_int8(NULL, ctx->kernels);
        ctx->bf16 = cylstm_find_bf16(ctx->kernels);
    }
    return ctx->kernels != NULL;
}
