/* avx2_f32.c -- the kernels for AVX2 with FMA, float32. */
#include "compact.h"
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 32
#define KERNELS cylstm_kernels_avx2_f32
#define ISA_NAME "avx2"
TARGET_BEGIN("avx2,fma")
#include "vec_avx2.h"
#include "kernels_tmpl.h"
TARGET_END
#endif
