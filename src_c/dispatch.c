/* dispatch.c -- the table of kernel sets, best first. Adding an ISA adds a row. */
#include "cpu.h"
#include "cylstm.h"
#include "kernels/kernels.h"

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
/* Asked once: under a hypervisor CPUID costs tens of microseconds. */
int cylstm_isa_usable(size_t n)
{
    static atomic_int answer[ROWS]; /* 0: not asked yet, else 1 + the answer */
    int known = atomic_load_explicit(&answer[n], memory_order_relaxed);
    if (!known) {
        known = 1 + table[n].usable();
        atomic_store_explicit(&answer[n], known, memory_order_relaxed);
    }
    return known - 1;
}

const struct cylstm_kernels *cylstm_find_kernels(const char *isa, int bits)
{
    for (size_t n = 0; n < cylstm_isa_count(); n++)
        if ((!isa || !strcmp(isa, table[n].isa)) && cylstm_isa_usable(n))
            return bits == 32 ? table[n].f32 : bits == 64 ? table[n].f64 : NULL;
    return NULL;
}

const char *cylstm_kernels_isa(const struct cylstm_kernels *kernels) { return kernels->isa; }

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
    return ctx->kernels != NULL;
}
