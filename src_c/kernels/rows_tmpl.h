/* rows_tmpl.h -- where a row starts, how much of a vector it fills, and what its sums start from. */

ALWAYS_INLINE real *row_of(const struct cylstm_rows *m, size_t r)
{
    return (real *)m->base + (m->offset ? m->offset[r] : (ptrdiff_t)r * m->stride);
}

/* Lanes of the vector at unit u that hold one of n units. */
ALWAYS_INLINE size_t valid(size_t u, size_t n) { return n - u < VL ? n - u : VL; }

/* Vector v of a panel's sums before any term; 0 in what a last panel does not use. */
ALWAYS_INLINE vf first_sum(const struct cylstm_product *p, size_t panel, size_t row, size_t v)
{
    if ((panel * PANEL_VECTORS + v) * VL >= p->columns) return v_zero();
    const ptrdiff_t at = (ptrdiff_t)panel * p->init_panel + (ptrdiff_t)row * p->init_row;
    return v_load((const real *)p->init + at + v * VL);
}
