/* avx2_int8.c -- int8 for AVX2. */
#include "compact.h"

#include <string.h>
#if CYLSTM_X86
#include <immintrin.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_avx2
#define INT8_NAME "avx2"
TARGET_BEGIN("avx2,fma")
#include "vec_avx2.h"
#include "int8_tmpl.h"
TARGET_END
#endif
