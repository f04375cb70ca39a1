/* cpu.c -- CPUID with XGETBV, never __builtin_cpu_supports: some compilers' runtime
 * answers no to everything there, which would silently run the portable kernels. */
#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* XCR0 bits of the registers that the operating system saves. */
enum { XCR0_YMM = 0x6, XCR0_ZMM = 0xe6 };

static int has_registers(uint64_t bits)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
    return (ecx & bit_OSXSAVE) && (read_xcr0() & bits) == bits;
}

int cylstm_cpu_has_avx2_fma(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!has_registers(XCR0_YMM)) return 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_FMA)) return 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_AVX2);
}

int cylstm_cpu_has_avx512(void)
{
    const unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    unsigned eax, ebx, ecx, edx;
    if (!has_registers(XCR0_ZMM) || !cylstm_cpu_has_avx2_fma()) return 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & needed) == needed;
}

int cylstm_cpu_has_avx512_vnni(void)
{
    unsigned eax, ebx, ecx, edx;
    return cylstm_cpu_has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (ecx & bit_AVX512VNNI);
}

int cylstm_cpu_has_avx512_bf16(void)
{
    const unsigned avx512_bf16 = 1u << 5;
    unsigned eax, ebx, ecx, edx;
    return cylstm_cpu_has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & avx512_bf16);
}

int cylstm_cpu_has_avx_vnni(void)
{
    const unsigned avx_vnni = 1u << 4;
    unsigned eax, ebx, ecx, edx;
    return cylstm_cpu_has_avx2_fma() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & avx_vnni);
}

int cylstm_cpu_has_dotprod(void) { return 0; }
int cylstm_cpu_has_bfdot(void) { return 0; }

/* Intel and AMD have the same table of caches, each at a leaf of its own: as long as a row's type is not 0. */
size_t cylstm_cpu_cache(unsigned level)
{
    static const unsigned leaves[] = {4, 0x8000001d};
    enum { INSTRUCTIONS = 2, ROWS = 16 };
    unsigned eax, ebx, ecx, edx;
    for (int n = 0; n < 2; n++)
        for (unsigned row = 0;
             row < ROWS && __get_cpuid_count(leaves[n], row, &eax, &ebx, &ecx, &edx) && (eax & 31);
             row++)
            if ((eax >> 5 & 7) == level && (eax & 31) != INSTRUCTIONS)
                return (size_t)((ebx >> 22) + 1) * ((ebx >> 12 & 1023) + 1) * ((ebx & 4095) + 1) *
                       ((size_t)ecx + 1);
    return 0;
}

/* MXCSR: all exceptions masked, round to nearest, flush to zero (bit 15), denormals are
 * zeros (bit 6). */
enum { MXCSR_COMPUTE = 0x9fc0 };

uint32_t cylstm_enter_float_mode(void)
{
    uint32_t mode;
    const uint32_t compute = MXCSR_COMPUTE;
    __asm__ volatile("stmxcsr %0" : "=m"(mode));
    if (mode != compute) __asm__ volatile("ldmxcsr %0" : : "m"(compute));
    return mode;
}

void cylstm_leave_float_mode(uint32_t mode)
{
    if (mode != MXCSR_COMPUTE) __asm__ volatile("ldmxcsr %0" : : "m"(mode));
}

#else

int cylstm_cpu_has_avx2_fma(void) { return 0; }
int cylstm_cpu_has_avx512(void) { return 0; }
int cylstm_cpu_has_avx512_vnni(void) { return 0; }
int cylstm_cpu_has_avx512_bf16(void) { return 0; }
int cylstm_cpu_has_avx_vnni(void) { return 0; }
size_t cylstm_cpu_cache(unsigned level)
{
    (void)level;
    return 0;
}
#if defined(__aarch64__) && defined(__linux__)
int cylstm_cpu_has_dotprod(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
int cylstm_cpu_has_bfdot(void)
{
    const unsigned long hwcap2_bf16 = 1ul << 14; /* which older headers lack */
    return (getauxval(AT_HWCAP2) & hwcap2_bf16) != 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
int cylstm_cpu_has_dotprod(void) { return 1; }
int cylstm_cpu_has_bfdot(void)
{
    int has = 0;
    size_t size = sizeof has;
    return !sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, NULL, 0) && has;
}
#else
int cylstm_cpu_has_dotprod(void) { return 0; }
int cylstm_cpu_has_bfdot(void) { return 0; }
#endif

#if defined(__aarch64__)

/* FPCR: flush to zero is bit 24; all else zero is round to nearest without traps. */
uint32_t cylstm_enter_float_mode(void)
{
    uint64_t mode;
    const uint64_t compute = UINT64_C(1) << 24;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(compute));
    return (uint32_t)mode;
}

void cylstm_leave_float_mode(uint32_t mode)
{
    const uint64_t wide = mode;
    __asm__ volatile("msr fpcr, %0" : : "r"(wide));
}

#else

uint32_t cylstm_enter_float_mode(void) { return 0; }
void cylstm_leave_float_mode(uint32_t mode) { (void)mode; }

#endif
#endif
