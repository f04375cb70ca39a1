/* rows_tmpl.h -- where a row starts, and how much of a vector it fills. */

ALWAYS_INLINE real *row_of(const struct cylstm_rows *m, size_t r)
{
    return (real *)m->base + (m->offset ? m->offset[r] : (ptrdiff_t)r * m->stride);
}

/* Lanes of the vector at unit u that hold one of n units. */
ALWAYS_INLINE size_t valid(size_t u, size_t n) { return n - u < VL ? n - u : VL; }
