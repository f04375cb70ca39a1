/* compact.c -- products with weights of fewer bits than a float: rows in blocks, each quantised once
 * and then met by every panel.
 *
 * A row is quantised on its own, whatever rows stand beside it: its bits depend neither on the
 * batch nor on the threads.
 */
#include "compact.h"

#include <string.h>

enum {
    BLOCK_ROWS = 64,
    TERMS = 4 /* of codes: of both terms, and of what wide ones leave */
};

static size_t stride_of(size_t code_size, size_t K)
{
    return cylstm_round_up(K, INT8_GROUP) * code_size;
}

size_t cylstm_codes_size(enum cylstm_format_type format, size_t K)
{
    const size_t code_size = format == CYLSTM_INT8                ? sizeof(int8_t)
                             : format == CYLSTM_BFLOAT16_PRODUCTS ? sizeof(uint16_t)
                                                                  : 0;
    if (!code_size) return 0;
    return BLOCK_ROWS * ((K + TERMS * INT8_GROUP) * code_size + TERMS * sizeof(float)) +
           TERMS * CYLSTM_ALIGN;
}

/* Where codes of a block of rows go: from `memory` on, which then is what is left. */
static struct cylstm_codes place_codes(size_t stride, size_t first, char **memory)
{
    const struct cylstm_codes codes = {(uint8_t *)*memory + BLOCK_ROWS * sizeof(float), stride,
                                       (float *)*memory, first, NULL};
    *memory += BLOCK_ROWS * sizeof(float) + cylstm_round_up(BLOCK_ROWS * stride, CYLSTM_ALIGN);
    return codes;
}

/* The codes of rows [first, first + rows) of both terms, in `memory`; behind them those of what a wide
 * term's first codes leave. */
static void quantize_rows(const struct cylstm_compact_kernels *k, const struct cylstm_product *p,
                          size_t first, size_t rows, char *memory, struct cylstm_codes codes[TERMS])
{
    for (int n = 0; n < 2; n++) {
        const struct cylstm_term *t = &p->term[n];
        const size_t stride = stride_of(k->code_size, t->K);
        struct cylstm_codes *rest = t->wide ? &codes[2 + n] : NULL;
        codes[n] = place_codes(stride, first, &memory);
        if (rest) *rest = place_codes(stride, first, &memory);
        codes[n].rest = rest;
        for (size_t r = 0; t->K && r < rows; r++) {
            const size_t row = first + r;
            const ptrdiff_t at = t->a.offset ? t->a.offset[row] : (ptrdiff_t)row * t->a.stride;
            codes[n].scales[r] =
                k->quantize((const float *)t->a.base + at, t->K, codes[n].codes + r * stride,
                            rest ? rest->codes + r * stride : NULL);
            if (rest) rest->scales[r] = codes[n].scales[r] / INT8_UNIT;
        }
    }
}

const struct cylstm_compact_kernels *cylstm_compact_kernels(const struct cylstm_context *ctx,
                                                            enum cylstm_format_type format)
{
    switch (format) {
    case CYLSTM_BFLOAT16: return ctx->kernels->bf16;
    case CYLSTM_BFLOAT16_PRODUCTS: return ctx->bf16;
    case CYLSTM_INT8: return ctx->int8;
    default: return NULL;
    }
}

/* Once more the sums of a gate that only term t meets, by that term alone. */
static void sum_alone(const struct cylstm_compact_kernels *k, const struct cylstm_product *p,
                      const struct cylstm_codes codes[2], size_t panel, size_t row, int t,
                      float *gate)
{
    _Alignas(CYLSTM_ALIGN) float again[PANEL_VECTORS * MAX_VL];
    struct cylstm_product one = *p;
    one.term[!t].K = 0;
    k->sum(&one, codes, panel, 1, row, 1, again);
    memcpy(gate, again + (t ? PANEL_VECTORS - 1 : 0) * k->lanes, k->lanes * sizeof *gate);
}

/* In a narrow product a term meets all four gates of a panel, with zeros for the weights of the one that is
 * not its own. Of these an infinity in a row makes NaN, in all lanes of all panels. Returns whether it has. */
static int mend_gates(const struct cylstm_compact_kernels *k, const struct cylstm_product *p,
                      const struct cylstm_codes codes[2], size_t panel, size_t row, size_t rows,
                      float *sums)
{
    const size_t width = PANEL_VECTORS * k->lanes;
    int found = 0;
    for (float *first = sums; first < sums + rows * width; first += width, row++) {
        float *last = first + width - k->lanes;
        if (*first != *first) sum_alone(k, p, codes, panel, row, 0, first), found = 1;
        if (*last != *last) sum_alone(k, p, codes, panel, row, 1, last), found = 1;
    }
    return found;
}

void cylstm_multiply_compact(const struct cylstm_call *call, const struct cylstm_product *p)
{
    const struct cylstm_compact_kernels *k = p->compact;
    _Alignas(CYLSTM_ALIGN) float sums[MAX_TILE_ROWS * PANEL_VECTORS * MAX_VL];
    const size_t width = PANEL_VECTORS * k->lanes, count = p->panel_end - p->panel_begin,
                 block = k->code_size ? BLOCK_ROWS : p->rows;
    const size_t together = p->rows == 1 ? k->row_panels : 1;
    struct cylstm_codes codes[TERMS];
    int infinite = 0; /* there are such numbers, as the first panel shows */
    for (size_t first = 0; first < p->rows; first += block) {
        const size_t end = p->rows - first < block ? p->rows : first + block;
        if (k->code_size) quantize_rows(k, p, first, end - first, p->codes, codes);
        for (size_t i = 0, panels; i < count; i += panels) {
            panels = count - i < together ? count - i : together;
            const size_t panel = p->descending ? p->panel_end - i - panels : p->panel_begin + i;
            size_t tiles = (end - first + k->tile_rows - 1) / k->tile_rows;
            for (size_t row = first, rows; row < end; row += rows, tiles--) {
                rows = (end - row + tiles - 1) / tiles; /* nearly equal heights */
                k->sum(p, codes, panel, panels, row, rows, sums);
                for (size_t n = 0; p->narrow && (!i || infinite) && n < panels; n++)
                    infinite |= mend_gates(k, p, codes, panel + n, row, rows, sums + n * width);
                for (size_t n = 0; n < panels; n++)
                    call->kernels->finish(p, panel + n, row, rows, sums + n * width);
            }
        }
    }
}
