/* avx512_int8.c -- int8 for AVX-512 without VNNI. */
#include "compact.h"

#include <string.h>
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_avx512
#define INT8_NAME "avx512"
TARGET_BEGIN("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#include "vec_avx512.h"
#include "int8_tmpl.h"
TARGET_END
#endif
