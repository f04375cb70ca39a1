/* cpu.h -- what this CPU can do, and its floating-point mode. */
#ifndef CYLSTM_CPU_H
#define CYLSTM_CPU_H

#include <stddef.h>
#include <stdint.h>

/* Both the CPU and the operating system must support a set of registers. */
int cylstm_cpu_has_avx2_fma(void);
int cylstm_cpu_has_avx512(void); /* F, DQ, BW, VL */
int cylstm_cpu_has_avx512_vnni(void);
int cylstm_cpu_has_avx512_bf16(void);
int cylstm_cpu_has_avx_vnni(void);
int cylstm_cpu_has_dotprod(void); /* AArch64: sdot */
int cylstm_cpu_has_bfdot(void);   /* AArch64: bfdot */

/* Bytes of the cache of a level, 2 or 3, that a core reads through; 0 if the CPU does not say. It may be
 * shared with other cores, of which those of another virtual machine are not told. */
size_t cylstm_cpu_cache(unsigned level);

/* One fixed mode while computing: round to nearest, results too small for a normal
 * number flushed to zero (they cost a hundred cycles each otherwise), no traps. */
uint32_t cylstm_enter_float_mode(void); /* returns the caller's mode */
void cylstm_leave_float_mode(uint32_t mode);

#endif
