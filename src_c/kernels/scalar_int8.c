/* scalar_int8.c -- int8 in portable C. */
#include "compact.h"

#include <string.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_scalar
#define INT8_NAME "scalar"
#include "vec_scalar.h"
#include "int8_tmpl.h"
