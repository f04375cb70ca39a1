/* scalar_bf16.c -- products of bfloat16 in portable C. */
#include "compact.h"

#include <string.h>
#define REAL_BITS 32
#define BF16_KERNELS cylstm_bf16_scalar
#define BF16_NAME "scalar"
#define DOT_BF16
#include "vec_scalar.h"
#include "bf16dot_tmpl.h"
