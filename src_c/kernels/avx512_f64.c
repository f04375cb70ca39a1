/* avx512_f64.c -- the kernels for AVX-512, float64. */
#include "kernels.h"
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 64
#define KERNELS cylstm_kernels_avx512_f64
#define ISA_NAME "avx512"
TARGET_BEGIN("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#include "vec_avx512.h"
#include "kernels_tmpl.h"
TARGET_END
#endif
