/* avx2_f64.c -- the kernels for AVX2 with FMA, float64. */
#include "kernels.h"
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 64
#define KERNELS cylstm_kernels_avx2_f64
#define ISA_NAME "avx2"
TARGET_BEGIN("avx2,fma")
#include "vec_avx2.h"
#include "kernels_tmpl.h"
TARGET_END
#endif
