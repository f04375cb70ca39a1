/* neondot_int8.c -- int8 for AArch64 with the dot product. */
#include "compact.h"

#include <string.h>
#if CYLSTM_AARCH64
#include <arm_neon.h>
#define REAL_BITS 32
#define INT8_KERNELS cylstm_int8_neondot
#define INT8_NAME "neondot"
#define DOT_SDOT
TARGET_BEGIN("arch=armv8.2-a+dotprod")
#include "vec_neon.h"
#include "int8_tmpl.h"
TARGET_END
#endif
