/* neon_int8.c -- int8 for AArch64 without the dot product. */
#include "compact.h"

#include <string.h>
#if CYLSTM_AARCH64
#include <arm_neon.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_neon
#define INT8_NAME "neon"
#include "vec_neon.h"
#include "int8_tmpl.h"
#endif
