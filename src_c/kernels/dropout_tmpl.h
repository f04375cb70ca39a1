/* dropout_tmpl.h -- inverted dropout from a counter: no state, so any thread may draw
 * any element, and the backward pass draws the same mask again. */

/* The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi:10.1145/2660193.2660195):
 * every bit of the counter reaches every bit of the result. */
ALWAYS_INLINE uint64_t mix64(uint64_t z)
{
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void dropout(const struct cylstm_dropout *d, uint64_t index, size_t count, const void *in,
                    void *out)
{
    const real *x = in;
    real *y = out;
    /* kept where the draw, a number of 32 bits, is at least p * 2^32 */
    const uint64_t threshold = (uint64_t)(d->p * 4294967296.0);
    const real scale = d->p < 1.0 ? (real)(1.0 / (1.0 - d->p)) : (real)0;
    for (size_t k = 0; k < count; k++) {
        const uint64_t draw = mix64(d->key + mix64(index + k)) >> 32;
        y[k] = draw >= threshold ? x[k] * scale : (real)0;
    }
}
