/* scalar_f32.c -- the kernels in portable C, float32. */
#include "compact.h"
#define REAL_BITS 32
#define KERNELS cylstm_kernels_scalar_f32
#define ISA_NAME "scalar"
#include "vec_scalar.h"
#include "kernels_tmpl.h"
