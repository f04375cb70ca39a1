/* sse2_f32.c -- the kernels for SSE2, float32. */
#include "compact.h"
#if CYLSTM_X86
#include <emmintrin.h>
#define REAL_BITS 32
#define KERNELS cylstm_kernels_sse2_f32
#define ISA_NAME "sse2"
#include "vec_sse2.h"
#include "kernels_tmpl.h"
#endif
