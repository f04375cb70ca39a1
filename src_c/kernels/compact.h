/* compact.h -- products with weights of fewer bits than a float: int8 and bfloat16.
 *
 * They leave float32 sums, which a kernel set then finishes like its own.
 *
 * bfloat16 weights are widened, and each sum is the chain of multiply-adds that it would be with
 * float32 weights of the same values: the bits are the same. Or, where the CPU multiplies bfloat16,
 * rows of activations are rounded to it as well: bf16dot_tmpl.h.
 *
 * With int8, a row of activations is quantised on its own, x ~ scale * q with |q| <= 127, and so is
 * a column of a panel, one unit's weights of one gate. The product of the two is an exact integer.
 * A row of 16 bits is two such rows, x ~ scale * (q + r / 254): what the first leaves is at most half
 * of a unit, and the second counts it in units of 1/254, |r| <= 127. Each meets the weights by itself.
 */
#ifndef CYLSTM_COMPACT_H
#define CYLSTM_COMPACT_H

#include "kernels.h"

enum {
    BF16_GROUP = 2, /* values of k that lie together, in one 32-bit lane */
    INT8_GROUP = 4,
    INT8_EXTRA_ROWS = 2,  /* of scales and of corrections */
    INT8_UNIT = 254,      /* units of a second row to one of the first */
    INT8_MOST_K = 1 << 17 /* 127 * 127 times as many fit 32 bits */
};

/* Rows of a term as int8 or bfloat16, from row `first` on: (rows, stride) bytes of codes, and with
 * int8 a scale for each. */
struct cylstm_codes {
    uint8_t *codes;
    size_t stride; /* of whole groups, at least K codes */
    float *scales;
    size_t first;
    const struct cylstm_codes *rest; /* NULL, or the second rows of a wide term */
};

/* In a product with compact weights w_panel counts bytes, and w_k is not used: from a term's `w` on, a
 * panel holds a row of 4 VL lanes for each group of k. With int8 two more rows follow: the scales of
 * the columns, and -128 times the sum of each, which takes back what unsigned codes add. */
struct cylstm_compact_kernels {
    const char *name;
    size_t lanes;      /* of the float32 kernel set that it serves */
    size_t tile_rows;  /* rows that `sum` takes at most */
    size_t row_panels; /* panels that it takes together for a lone row, at most */
    size_t code_size;  /* bytes; 0: rows stay as they are, and there is no `quantize` */
    /* Codes of n floats, up to whole groups, and their scale. int8: a row that holds a NaN or an
     * infinity gets the scale NaN, and so do its sums; one whose largest value is less than 2^-119
     * is zero. `rest`, unless it is NULL, gets the codes of a second row. bfloat16: 1, which nobody
     * reads; a NaN stays one; it has no second rows. */
    float (*quantize)(const float *x, size_t n, uint8_t *codes, uint8_t *rest);
    /* sums (rows, 4 VL) = init + both terms, of rows from `row` on. Of a lone row, sums (panels, 4 VL).
     * `codes`, where there are such: of each term's rows. */
    void (*sum)(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel,
                size_t panels, size_t row, size_t rows, float *sums);
};

#if CYLSTM_X86
extern const struct cylstm_compact_kernels cylstm_bf16_avx512;
extern const struct cylstm_compact_kernels cylstm_int8_avx512vnni, cylstm_int8_avx512;
extern const struct cylstm_compact_kernels cylstm_int8_avxvnni, cylstm_int8_avx2, cylstm_int8_sse2;
#endif
#if CYLSTM_AARCH64
extern const struct cylstm_compact_kernels cylstm_bf16_neon;
extern const struct cylstm_compact_kernels cylstm_int8_neondot, cylstm_int8_neon;
#endif
extern const struct cylstm_compact_kernels cylstm_int8_scalar, cylstm_bf16_scalar;

#endif
