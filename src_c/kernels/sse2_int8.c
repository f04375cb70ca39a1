/* sse2_int8.c -- int8 for SSE2. */
#include "compact.h"

#include <string.h>
#if CYLSTM_X86
#include <emmintrin.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_sse2
#define INT8_NAME "sse2"
#include "vec_sse2.h"
#include "int8_tmpl.h"
#endif
