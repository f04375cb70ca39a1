/* neon_f32.c -- the kernels for AArch64 Advanced SIMD, float32. */
#include "compact.h"
#if CYLSTM_AARCH64
#include <arm_neon.h>
#define REAL_BITS 32
#define KERNELS cylstm_kernels_neon_f32
#define ISA_NAME "neon"
#include "vec_neon.h"
#include "kernels_tmpl.h"
#endif
