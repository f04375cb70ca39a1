/* scalar_f64.c -- the kernels in portable C, float64. */
#include "kernels.h"
#define REAL_BITS 64
#define KERNELS cylstm_kernels_scalar_f64
#define ISA_NAME "scalar"
#include "vec_scalar.h"
#include "kernels_tmpl.h"
