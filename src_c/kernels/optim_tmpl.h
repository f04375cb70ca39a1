/* optim_tmpl.h -- optimisers: one pass over the weights of a step, for it is memory that they wait for.
 *
 * Each lane is on its own, so that the bits don't depend on how the weights are shared out.
 */

#if REAL_BITS == 32
static const real SMALLEST = 0x1p-126f;
#else
static const real SMALLEST = 0x1p-1022;
#endif

/* g = gradient + penalty w, m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
 * w = keep w - step_size m / (sqrt(v) + eps)
 *
 * v is taken as at least the smallest normal number: less has been flushed to zero, by which
 * nothing may be divided where eps is 0. */
ALWAYS_INLINE vf adam_lanes(const struct cylstm_adam_terms *s, vf w, vf g, vf *m, vf *v)
{
    if (s->penalty != 0) g = v_fma(v_set1((real)s->penalty), w, g);
    *m = v_fma(v_set1((real)s->beta1), *m, v_mul(v_set1((real)(1 - s->beta1)), g));
    *v = v_fma(v_set1((real)s->beta2), *v, v_mul(v_mul(v_set1((real)(1 - s->beta2)), g), g));
    const vf root = v_sqrt(v_max(v_set1(SMALLEST), *v));
    const vf step = v_div(*m, v_add(root, v_set1((real)s->eps)));
    return v_fnma(v_set1((real)s->step_size), step, v_mul(v_set1((real)s->keep), w));
}

static void adam(const struct cylstm_adam_terms *terms, const struct cylstm_update *update,
                 size_t n)
{
    const struct cylstm_adam_terms s = *terms; /* which no store below can change */
    const real *w = update->weights, *g = update->grads;
    const real *mean = update->state[0], *square = update->state[1];
    real *out = update->out, *mean_out = update->state_out[0], *square_out = update->state_out[1];
    const int streams = update->streams && (uintptr_t)out % sizeof(vf) == 0;
    size_t k = 0;
    for (; n - k >= VL; k += VL) {
        vf m = v_load(mean + k), v = v_load(square + k);
        const vf moved = adam_lanes(&s, v_load(w + k), v_load(g + k), &m, &v);
        if (streams)
            v_stream(out + k, moved);
        else
            v_store(out + k, moved);
        v_store(mean_out + k, m);
        v_store(square_out + k, v);
    }
    n -= k;
    vf m = v_load_n(mean + k, n), v = v_load_n(square + k, n);
    v_store_n(out + k, adam_lanes(&s, v_load_n(w + k, n), v_load_n(g + k, n), &m, &v), n);
    v_store_n(mean_out + k, m, n);
    v_store_n(square_out + k, v, n);
    if (streams) V_FENCE();
}

/* g = gradient + penalty w, b = momentum b + undampened g (b = g at first),
 * w = w - lr b   (without momentum w - lr g, with Nesterov's w - lr (g + momentum b)) */
ALWAYS_INLINE vf sgd_lanes(const struct cylstm_sgd_terms *s, vf w, vf g, vf *b)
{
    if (s->penalty != 0) g = v_fma(v_set1((real)s->penalty), w, g);
    const vf momentum = v_set1((real)s->momentum);
    if (b) {
        *b = s->first ? g : v_fma(momentum, *b, v_mul(v_set1((real)s->undampened), g));
        g = s->nesterov ? v_fma(momentum, *b, g) : *b;
    }
    return v_fnma(v_set1((real)s->lr), g, w);
}

static void sgd(const struct cylstm_sgd_terms *terms, const struct cylstm_update *update, size_t n)
{
    const struct cylstm_sgd_terms s = *terms;
    const real *w = update->weights, *g = update->grads, *buffer = update->state[0];
    real *out = update->out, *buffer_out = update->state_out[0];
    size_t k = 0;
    if (!buffer) {
        for (; n - k >= VL; k += VL)
            v_store(out + k, sgd_lanes(&s, v_load(w + k), v_load(g + k), NULL));
        n -= k;
        v_store_n(out + k, sgd_lanes(&s, v_load_n(w + k, n), v_load_n(g + k, n), NULL), n);
        return;
    }
    for (; n - k >= VL; k += VL) {
        vf b = v_load(buffer + k);
        v_store(out + k, sgd_lanes(&s, v_load(w + k), v_load(g + k), &b));
        v_store(buffer_out + k, b);
    }
    n -= k;
    vf b = v_load_n(buffer + k, n);
    v_store_n(out + k, sgd_lanes(&s, v_load_n(w + k, n), v_load_n(g + k, n), &b), n);
    v_store_n(buffer_out + k, b, n);
}
