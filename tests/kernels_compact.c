/* kernels_compact.c -- products with weights of fewer bits than a real, and the codes of their rows. */
#define _DEFAULT_SOURCE
#include "kernels_check.h"

static int is_int8(const struct cylstm_compact_kernels *k) { return k->code_size == 1; }

/* Store a weight: one of the values of k that share a lane. */
static void put_compact(const struct cylstm_compact_kernels *k, unsigned char *lane, size_t n,
                        int q)
{
    if (is_int8(k)) {
        lane[n] = (unsigned char)q;
        return;
    }
    const float value = (float)q; /* of 7 bits, all of which bfloat16 keeps */
    uint32_t bits, both;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&both, lane, sizeof both);
    both = n ? (both & 0xffff) | (bits & 0xffff0000) : (both & 0xffff0000) | bits >> 16;
    memcpy(lane, &both, sizeof both);
}

/* What a set of kernels writes for 0: some of them take bytes without a sign. */
static int code_of_zero(const struct cylstm_compact_kernels *k)
{
    const float zero = 0;
    uint8_t codes[INT8_GROUP];
    k->quantize(&zero, 1, codes, NULL);
    return codes[0];
}

static struct cylstm_codes place_codes(struct trial *t, size_t rows, size_t stride, size_t first)
{
    return (struct cylstm_codes){guarded(t, "codes", rows * stride), stride,
                                 guarded(t, "scales", rows * sizeof(float)), first, NULL};
}

/* sums = init + both terms, of some rows of one panel, or of a lone row of as many as go together. All
 * numbers are whole and scales powers of two, so that the sums are exact: each row holds a 127,
 * which makes its scale 1. */
static void check_compact(struct trial *t, const struct cylstm_compact_kernels *k)
{
    if (!k) return; /* none of this type */
    enum { WORD = 4 };
    const size_t group = is_int8(k) ? INT8_GROUP : BF16_GROUP, VL = k->lanes,
                 line = PANEL_VECTORS * VL * WORD, extra = is_int8(k) ? INT8_EXTRA_ROWS : 0,
                 rows = size_between(t, 1, k->tile_rows, k->tile_rows),
                 row = size_between(t, 0, 3, 0),
                 panels = rows == 1 ? size_between(t, 1, k->row_panels, k->row_panels) : 1,
                 panel = size_between(t, 0, 2, 0), columns = panels * width_of(t);
    struct cylstm_product p = {.compact = k};
    struct cylstm_codes codes[2] = {{0}}, rest[2];
    size_t K[2], longer = 0;
    for (int n = 0; n < 2; n++) {
        K[n] = chance(t, 5) ? 0 : size_between(t, 1, 40, 64);
        longer = K[n] > longer ? K[n] : longer;
    }
    p.w_panel = (ptrdiff_t)((round_up(longer, group) / group + extra) * line + gap(t) * WORD);
    for (int n = 0; n < 2; n++) {
        struct cylstm_term *term = &p.term[n];
        if (!K[n]) continue;
        const size_t groups = round_up(K[n], group) / group, all = row + rows;
        term->K = K[n];
        term->a_k = 1;
        term->a = place(t, "a", all, K[n]);
        for (size_t r = 0; r < all; r++)
            for (size_t j = 0; j < K[n]; j++)
                put(t, row_of(t, &term->a, r), (ptrdiff_t)j,
                    j == r % K[n] ? 127 : (double)below(t, 255) - 127);
        unsigned char *w =
            guarded(t, "w", (panel + panels - 1) * (size_t)p.w_panel + (groups + extra) * line);
        term->w = w;
        for (size_t c = 0; c < columns; c++) {
            unsigned char *lane =
                w + (panel + c / width_of(t)) * (size_t)p.w_panel + c % width_of(t) * WORD;
            int32_t sum = 0;
            for (size_t j = 0; j < groups * group; j++) {
                const int q = j < K[n] ? (int)below(t, 255) - 127 : 0;
                put_compact(k, lane + j / group * line, j % group, q);
                sum += q;
            }
            if (!is_int8(k)) continue;
            const float scale = (float)ldexp(1, -(int)below(t, 3));
            sum *= -128;
            memcpy(lane + groups * line, &scale, sizeof scale);
            memcpy(lane + (groups + 1) * line, &sum, sizeof sum);
        }
        if (!k->code_size) continue;
        const size_t stride = groups * group * k->code_size;
        codes[n] = place_codes(t, rows, stride, row);
        for (size_t r = 0; r < rows; r++)
            codes[n].scales[r] =
                k->quantize(row_of(t, &term->a, row + r), K[n], codes[n].codes + r * stride, NULL);
        if (!is_int8(k) || !chance(t, 2)) continue;
        rest[n] = place_codes(t, rows, stride, row);
        for (size_t j = 0; j < rows * stride; j++)
            rest[n].codes[j] = (uint8_t)(code_of_zero(k) + (int)below(t, 255) - 127);
        for (size_t r = 0; r < rows; r++)
            rest[n].scales[r] = (float)ldexp(1, -1 - (int)below(t, 2));
        codes[n].rest = &rest[n];
    }
    float *sums = guarded(t, "sums", (rows > 1 ? rows : panels) * line);
    /* the last panel may use fewer vectors, and what it does not use starts from 0 */
    p.columns = (panel + panels) * width_of(t) - size_between(t, 0, width_of(t) - 1, 0);
    const size_t used = round_up(p.columns, VL);
    p.init_panel = (ptrdiff_t)width_of(t);
    p.init_row = (ptrdiff_t)(used + gap(t));
    const size_t count = (row + rows - 1) * (size_t)p.init_row + used;
    float *init = guarded(t, "init", count * sizeof *init);
    for (size_t j = 0; j < count; j++) init[j] = (float)number(t, 1);
    p.init = init;
    describe(t, "%s: %zu rows from %zu, %zu panels from %zu, K %zu + %zu", k->name, rows, row,
             panels, panel, K[0], K[1]);
    CALL(t, k->sum(&p, codes, panel, panels, row, rows, sums));
    for (size_t r = 0; r < rows && !bench; r++)
        for (size_t c = 0; c < columns; c++) {
            const ptrdiff_t at = (ptrdiff_t)(r * width_of(t) + c);
            const size_t column = panel * width_of(t) + c;
            long double want = column < used ? init[(row + r) * (size_t)p.init_row + column] : 0;
            for (int n = 0; n < 2; n++) {
                const unsigned char *lane = (const unsigned char *)p.term[n].w +
                                            (panel + c / width_of(t)) * (size_t)p.w_panel +
                                            c % width_of(t) * WORD;
                long double sum = 0;
                float scale = 1;
                for (size_t j = 0; j < K[n]; j++) {
                    uint32_t both;
                    memcpy(&both, lane + j / group * line, sizeof both);
                    both = j % group ? both & 0xffff0000 : both << 16;
                    float value;
                    memcpy(&value, &both, sizeof value);
                    if (is_int8(k)) value = (float)(signed char)lane[j / group * line + j % group];
                    long double x = get(t, row_of(t, &p.term[n].a, row + r), (ptrdiff_t)j);
                    if (codes[n].rest)
                        x += rest[n].scales[r] *
                             (float)(signed char)(rest[n].codes[r * rest[n].stride + j] -
                                                  code_of_zero(k));
                    sum += x * (long double)value;
                }
                if (is_int8(k) && K[n])
                    memcpy(&scale, lane + round_up(K[n], group) / group * line, sizeof scale);
                want += sum * scale;
            }
            expect(t, "sums", r, c, sums, at, want, 0);
        }
}

void check_bf16(const struct check *check, struct trial *t)
{
    (void)check;
    check_compact(t, t->kernels->bf16);
}

void check_bf16_products(const struct check *check, struct trial *t)
{
    (void)check;
    check_compact(t, cylstm_find_bf16(t->kernels));
}

static float widened(uint16_t code)
{
    const uint32_t bits = (uint32_t)code << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest even, by arithmetic: of normal numbers, with 8 bits behind the first. */
static uint16_t rounded(float x)
{
    int exponent;
    const double fraction = frexp(x, &exponent);
    const float near = (float)ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
    uint32_t bits;
    memcpy(&bits, &near, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* A lone row and a whole tile of numbers that must be rounded: as near to the sum of exact products
 * as bf16dot_tmpl.h promises, and the same for each row, however many go together. */
void check_bf16_rounded(const struct check *check, struct trial *t)
{
    (void)check;
    const struct cylstm_compact_kernels *k = cylstm_find_bf16(t->kernels);
    if (!k) return;
    record = NULL; /* each CPU rounds its own way */
    const size_t K = size_between(t, 1, 90, 64), pairs = round_up(K, 2) / 2, width = width_of(t),
                 rows = k->tile_rows;
    struct cylstm_rows a = place(t, "a", rows, K);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < K; j++) put(t, row_of(t, &a, r), (ptrdiff_t)j, 2 * fraction(t));
    uint16_t *w = guarded(t, "w", pairs * width * 2 * sizeof *w),
             *codes = guarded(t, "codes", rows * pairs * 2 * sizeof *codes);
    for (size_t n = 0; n < pairs * width * 2; n++)
        w[n] = n % 2 && n / 2 / width * 2 + 1 == K ? 0 : rounded((float)fraction(t));
    float *init = guarded(t, "init", width * sizeof *init),
          *sums = guarded(t, "sums", rows * width * sizeof *sums),
          *alone = guarded(t, "alone", width * sizeof *alone);
    for (size_t c = 0; c < width; c++) init[c] = (float)fraction(t);
    for (size_t r = 0; r < rows; r++)
        k->quantize(row_of(t, &a, r), K, (uint8_t *)(codes + r * pairs * 2), NULL);
    const struct cylstm_product p = {.compact = k,
                                     .columns = width,
                                     .init = init,
                                     .term[0] = {.a = a, .a_k = 1, .K = K, .w = w}};
    const struct cylstm_codes both[2] = {
        {(uint8_t *)codes, pairs * 2 * sizeof *codes, NULL, 0, NULL}};
    describe(t, "%s: %zu rows of %zu", k->name, rows, K);
    CALL(t, k->sum(&p, both, 0, 1, 0, rows, sums));
    for (size_t r = 0; r < rows && !bench; r++) {
        k->sum(&p, both, 0, 1, r, 1, alone);
        if (memcmp(alone, sums + r * width, width * sizeof *alone))
            fail(t, "row %zu of the tile is another by itself", r);
        for (size_t c = 0; c < width; c++) {
            long double want = init[c], magnitude = fabsl(want);
            for (size_t j = 0; j < K; j++) {
                const long double x = widened(
                                      rounded((float)get(t, row_of(t, &a, r), (ptrdiff_t)j))),
                                  product = x * widened(w[(j / 2 * width + c) * 2 + j % 2]);
                want += product;
                magnitude += fabsl(product);
            }
            expect(t, "sums", r, c, sums, (ptrdiff_t)(r * width + c), want,
                   (long double)(pairs + 1) * 0x1p-23L * magnitude);
        }
    }
    memcpy(alone, before(t, alone), width * sizeof *alone);
}

/* Rows as bfloat16: to nearest even, halves of it, infinities and NaN among them. */
void check_round_row(const struct check *check, struct trial *t)
{
    (void)check;
    const struct cylstm_compact_kernels *k = cylstm_find_bf16(t->kernels);
    if (!k) return;
    const size_t n = size_between(t, 1, 80, 64), all = round_up(n, BF16_GROUP);
    float *x = guarded(t, "x", n * sizeof *x);
    uint16_t *codes = guarded(t, "codes", all * sizeof *codes);
    for (size_t j = 0; j < n; j++) {
        const float half = (float)(256 + below(t, 256)) + 0.5f; /* between two of them */
        x[j] = chance(t, 3) ? ldexpf(chance(t, 2) ? half : -half, (int)below(t, 200) - 100)
                            : (float)(4 * fraction(t));
        if (chance(t, 20)) x[j] = chance(t, 2) ? INFINITY : chance(t, 2) ? 0 : NAN;
    }
    describe(t, "%s: %zu numbers", k->name, n);
    CALL(t, k->quantize(x, n, (uint8_t *)codes, NULL));
    for (size_t j = 0; j < all && !bench; j++) {
        const float got = widened(codes[j]), want = j >= n ? 0
                                                    : isinf(x[j]) || isnan(x[j])
                                                        ? x[j]
                                                        : widened(rounded(x[j]));
        if (memcmp(&got, &want, sizeof got) && !(isnan(got) && isnan(want)))
            fail(t, "code %zu of %.9g is %.9g, but should be %.9g", j, j < n ? x[j] : 0.f, got,
                 want);
    }
    memcpy(codes, before(t, codes), all * sizeof *codes);
}

/* Every way of multiplying int8 that serves a set, by turns. */
static const struct cylstm_compact_kernels *int8_of(const struct trial *t)
{
    const struct cylstm_compact_kernels *ways[MAX_SETS];
    size_t count = 0;
    for (size_t n = 0; n < cylstm_int8_count() && count < MAX_SETS; n++)
        if ((ways[count] = cylstm_find_int8(cylstm_int8_name(n), t->kernels))) count++;
    return count ? ways[t->seed % count] : NULL;
}

void check_int8(const struct check *check, struct trial *t)
{
    (void)check;
    check_compact(t, int8_of(t));
}

/* Codes of a row: whole numbers from -127 to 127 times its scale, to nearest even in float32; and of a
 * second row, which counts what they leave. */
void check_quantize(const struct check *check, struct trial *t)
{
    (void)check;
    const struct cylstm_compact_kernels *k = int8_of(t);
    if (!k) return;
    const size_t n = size_between(t, 1, 80, 64), all = round_up(n, INT8_GROUP),
                 kind = size_between(t, 0, 9, 9); /* zeros, almost zeros, NaN, infinite; numbers */
    float *x = guarded(t, "x", n * sizeof *x), most = 0;
    uint8_t *codes = guarded(t, "codes", all),
            *rest = chance(t, 2) ? guarded(t, "rest", all) : NULL;
    const int zero = code_of_zero(k);
    for (size_t j = 0; j < n; j++)
        x[j] = (float)(fraction(t) * (kind == 0 ? 0 : kind == 1 ? 0x1p-121 : 4));
    if (kind == 2) x[below(t, n)] = NAN;
    if (kind == 3) x[below(t, n)] = -INFINITY;
    for (size_t j = 0; j < n; j++) most = fmaxf(most, fabsf(x[j]));
    describe(t, "%s: %zu numbers up to %g, kind %zu%s", k->name, n, most, kind,
             rest ? ", two rows" : "");
    float scale = 0;
    CALL(t, scale = k->quantize(x, n, codes, rest));
    if (bench) return;
    const int none = kind < 4;
    const float by = none ? 0 : 127 / most, want = kind == 2 || kind == 3 ? NAN
                                                   : none                 ? 0
                                                                          : most / 127;
    if (memcmp(&scale, &want, sizeof scale) && !(scale != scale && want != want))
        fail(t, "the scale is %g, but should be %g", scale, want);
    for (size_t j = 0; j < all; j++) {
        const float multiple = j < n && !none ? x[j] * by : 0;
        const int code = (int)(signed char)(codes[j] - zero), truth = (int)lrintf(multiple);
        if (code != truth) fail(t, "code %zu is %d, but should be %d", j, code, truth);
        if (!rest) continue;
        const int second = (int)(signed char)(rest[j] - zero),
                  left = (int)lrintf((multiple - (float)truth) * INT8_UNIT);
        if (second != left) fail(t, "second code %zu is %d, but should be %d", j, second, left);
    }
    memcpy(codes, before(t, codes), all);
    if (rest) memcpy(rest, before(t, rest), all);
}
