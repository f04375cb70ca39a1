/* blas.c -- products by BLAS instead of a packed kernel.
 *
 * BLAS reads panels as they are: a panel is a row-major matrix (K, 4 VL), packed or a part of
 * a raw one. Its sums come out in panel order too, and the kernel set finishes them.
 */
#include "blas.h"

#include <limits.h>
#include <string.h>

enum { BLAS_ROWS = 128 }; /* of a block of sums, which lies on the stack */

int cylstm_uses_blas(const struct cylstm_context *ctx)
{
    return ctx->kernels->bits == 32 ? ctx->sgemm != NULL : ctx->dgemm != NULL;
}

/* sums (rows, 4 VL) += a (rows, K) * w (K, columns), row-major; in BLAS's column-major
 * words the transposes of the three, in reverse order. */
static void blas_gemm(const struct cylstm_call *call, int transposed, size_t rows, size_t columns,
                      size_t K, const void *a, ptrdiff_t lda, const void *w, ptrdiff_t ldw,
                      void *sums, size_t ldc)
{
    const int m = (int)columns, n = (int)rows, k = (int)K;
    /* Where there is one k, no step leads to the next; BLAS still wants a row's length. */
    const int ld_w = k > 1 ? (int)ldw : m, ld_c = (int)ldc,
              ld_a = k > 1 || !transposed ? (int)lda : n;
    const char *trans = transposed ? "T" : "N";
    if (call->kernels->bits == 32) {
        const float one = 1;
        call->ctx->sgemm("N", trans, &m, &n, &k, &one, w, &ld_w, a, &ld_a, &one, sums, &ld_c);
    } else {
        const double one = 1;
        call->ctx->dgemm("N", trans, &m, &n, &k, &one, w, &ld_w, a, &ld_a, &one, sums, &ld_c);
    }
}

static ptrdiff_t row_offset(const struct cylstm_rows *m, size_t r)
{
    return m->offset ? m->offset[r] : (ptrdiff_t)r * m->stride;
}

/* BLAS wants rows at one stride: take the longest runs that have one. */
static void blas_term(const struct cylstm_call *call, const struct cylstm_term *t, size_t row,
                      size_t rows, size_t columns, const void *w, ptrdiff_t w_k, char *sums,
                      size_t width)
{
    const size_t size = call->real_size;
    const int transposed = t->a_k != 1;
    for (size_t i = 0; i < rows;) {
        const ptrdiff_t at = row_offset(&t->a, row + i);
        ptrdiff_t stride = transposed ? t->a_k : (ptrdiff_t)t->K;
        size_t n = 1;
        if (transposed) {
            n = rows; /* rows of a transposed operand are neighbours */
        } else if (i + 1 < rows) {
            const ptrdiff_t next = row_offset(&t->a, row + i + 1) - at;
            if (next >= (ptrdiff_t)t->K && next <= INT_MAX) stride = next;
            while (i + n < rows && row_offset(&t->a, row + i + n) - at == (ptrdiff_t)n * stride)
                n++;
        }
        blas_gemm(call, transposed, n, columns, t->K, cylstm_at(t->a.base, size, at), stride, w,
                  w_k, sums + i * width * size, width);
        i += n;
    }
}

void cylstm_multiply_by_blas(const struct cylstm_call *call, const struct cylstm_product *p)
{
    _Alignas(CYLSTM_ALIGN) char sums[BLAS_ROWS * PANEL_VECTORS * MAX_VL * sizeof(float)];
    const size_t size = call->real_size, width = cylstm_panel_width(call->kernels),
                 VL = call->kernels->lanes;
    for (size_t panel = p->panel_begin; panel < p->panel_end; panel++) {
        const size_t left = p->columns - panel * width, columns = left < width ? left : width;
        const size_t lanes = cylstm_round_up(columns, VL); /* what `finish` reads */
        for (size_t row = 0; row < p->rows; row += BLAS_ROWS) {
            const size_t rows = p->rows - row < BLAS_ROWS ? p->rows - row : BLAS_ROWS;
            for (size_t r = 0; r < rows; r++) {
                const ptrdiff_t at =
                    (ptrdiff_t)panel * p->init_panel + (ptrdiff_t)(row + r) * p->init_row;
                memcpy(sums + r * width * size, cylstm_at(p->init, size, at), lanes * size);
            }
            for (int t = 0; t < 2; t++) {
                /* the columns that the term meets: in a row of weights where all four gates fit it */
                const size_t gate = columns / PANEL_VECTORS, first = p->narrow && t ? gate : 0,
                             from = columns < width ? first : 0;
                if (p->term[t].K)
                    blas_term(call, &p->term[t], row, rows, p->narrow ? columns - gate : columns,
                              cylstm_at(p->term[t].w, size,
                                        (ptrdiff_t)panel * p->w_panel + (ptrdiff_t)from),
                              p->w_k, sums + first * size, width);
            }
            call->kernels->finish(p, panel, row, rows, sums);
        }
    }
}
