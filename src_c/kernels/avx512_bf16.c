/* avx512_bf16.c -- products of bfloat16 for AVX-512 with BF16. */
#include "compact.h"

#include <string.h>
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 32
#define BF16_KERNELS cylstm_bf16_avx512
#define BF16_NAME "avx512bf16"
#define DOT_BF16
TARGET_BEGIN("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16")
#include "vec_avx512.h"
#include "bf16dot_tmpl.h"
TARGET_END
#endif
