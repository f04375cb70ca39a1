/* avx512_f32.c -- the kernels for AVX-512, float32. */
#include "compact.h"
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 32
#define KERNELS cylstm_kernels_avx512_f32
#define ISA_NAME "avx512"
TARGET_BEGIN("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#include "vec_avx512.h"
#include "kernels_tmpl.h"
TARGET_END
#endif
