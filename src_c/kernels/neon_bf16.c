/* neon_bf16.c -- products of bfloat16 for AArch64 with BF16. */
#include "compact.h"

#include <string.h>
#if CYLSTM_AARCH64
#include <arm_neon.h>
#define REAL_BITS 32
#define BF16_KERNELS cylstm_bf16_neon
#define BF16_NAME "neonbf16"
#define DOT_BF16
TARGET_BEGIN("arch=armv8.2-a+bf16")
#include "vec_neon.h"
#include "bf16dot_tmpl.h"
TARGET_END
#endif
