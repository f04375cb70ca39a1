/* sse2_f64.c -- the kernels for SSE2, float64. */
#include "kernels.h"
#if CYLSTM_X86
#include <emmintrin.h>
#define REAL_BITS 64
#define KERNELS cylstm_kernels_sse2_f64
#define ISA_NAME "sse2"
#include "vec_sse2.h"
#include "kernels_tmpl.h"
#endif
