/* kernels_product.c -- the product of rows and panels: every tile, both terms, every way to start and
 * to end. */
#define _DEFAULT_SOURCE
#include "kernels_check.h"

/* Where a gate of a unit stands among all columns: gates alternate by vectors. In a last panel that is
 * not whole, four are each as long as a fourth of what is left. */
static size_t column_of(const struct trial *t, const struct ending *e,
                        const struct cylstm_product *p, size_t gate, size_t unit)
{
    const size_t lanes = t->kernels->lanes, vector = unit / lanes * e->gates + gate;
    if (e->gates == 1) return unit;
    if (e->gates < PANEL_VECTORS) return vector * lanes + unit % lanes;
    const size_t first = unit / lanes * width_of(t),
                 length = smaller(lanes, (p->columns - first) / e->gates);
    return first + gate * length + unit % lanes;
}

/* --- stored to rows, or to a panel after the other */

static void place_store(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t width = width_of(t), last = (units - 1) / width;
    p->columns = units;
    if (chance(t, 3)) {
        const size_t stride = width + gap(t), panel = p->rows * stride + gap(t);
        p->out_panel = (ptrdiff_t)panel;
        p->out.stride = (ptrdiff_t)stride;
        p->out.base = guarded_reals(
            t, "out", p->rows ? last * panel + (p->rows - 1) * stride + units - last * width : 0);
    } else {
        p->out_panel = (ptrdiff_t)width;
        p->out = place(t, "out", p->rows, units);
    }
}

static void judge_store(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                        const struct near *sum)
{
    expect(t, "out", row, unit, row_of(t, &p->out, row), in_panels(t, unit, p->out_panel), sum->is,
           sum->within);
}

const struct ending
    store = {.gates = 1, .place = place_store, .judge = judge_store},
    store_exactly = {.gates = 1, .grain = 1, .place = place_store, .judge = judge_store},
    store_narrow = {
        .gates = 1, .grain = 1, .narrow = 1, .place = place_store, .judge = judge_store};

/* --------------------------------------------------------------------- the product */

/* Memory for (major, minor) rows of the columns of a panel, of which the last holds fewer. */
static void *place_panels(struct trial *t, const char *name, const struct cylstm_product *p,
                          size_t panel_stride, size_t rows, size_t row_stride)
{
    const size_t last = panels_of(t, p) - 1;
    return guarded_reals(t, name,
                         last * panel_stride + (rows - 1) * row_stride + filled(t, p, last));
}

/* Numbers in the columns of a row of panels. Columns that only pad hold zeros where the ending
 * computes them too, and else must not matter. */
static void fill_panels(struct trial *t, const struct ending *e, const struct cylstm_product *p,
                        size_t units, void *row, ptrdiff_t panel_stride)
{
    for (size_t c = 0; e->pads && c < round_up(p->columns, t->kernels->lanes); c++)
        put(t, row, in_panels(t, c, panel_stride), 0);
    for (size_t gate = 0; gate < e->gates; gate++)
        for (size_t u = 0; u < units; u++)
            put(t, row, in_panels(t, column_of(t, e, p, gate, u), panel_stride),
                number(t, e->grain));
}

/* Weights: packed, panel after panel, or in rows as long as all columns. */
static void place_terms(struct trial *t, const struct ending *e, struct cylstm_product *p,
                        size_t units, const size_t K[2])
{
    const size_t width = width_of(t), longer = K[0] > K[1] ? K[0] : K[1],
                 met = e->narrow ? NARROW_VECTORS * t->kernels->lanes : width;
    const int packed = e->narrow || !chance(t, 3);
    const size_t w_k = (packed ? met : round_up(p->columns, t->kernels->lanes)) + gap(t);
    p->w_k = (ptrdiff_t)w_k;
    p->w_panel = packed ? (ptrdiff_t)(longer * w_k + gap(t)) : (ptrdiff_t)width;
    for (size_t n = 0; n < 2; n++) {
        struct cylstm_term *term = &p->term[n];
        if (!K[n]) continue;
        /* columns of a matrix: here and there so far apart that the kernel asks for them ahead */
        const size_t step = t->seed % 16 == 5 && !bench ? 1025 : chance(t, 4) ? 1 + below(t, 9) : 1;
        term->K = K[n];
        term->a_k = (ptrdiff_t)step;
        term->a = place(t, n ? "a of term 1" : "a of term 0", p->rows, (K[n] - 1) * step + 1);
        for (size_t r = 0; r < p->rows; r++)
            for (size_t k = 0; k < K[n]; k++)
                put(t, row_of(t, &term->a, r), (ptrdiff_t)(k * step), number(t, e->grain));
        if (e->narrow && p->rows && chance(t, 3))
            put(t, row_of(t, &term->a, below(t, p->rows)), (ptrdiff_t)(below(t, K[n]) * step),
                INFINITY);
        const char *name = n ? "w of term 1" : "w of term 0";
        if (e->narrow) {
            const size_t last = panels_of(t, p) - 1, end = smaller(met, filled(t, p, last)),
                         all = last * (size_t)p->w_panel + (K[n] - 1) * w_k + end;
            void *w = guarded_reals(t, name, all);
            for (size_t c = 0; c < all; c++) put(t, w, (ptrdiff_t)c, number(t, e->grain));
            /* in a partial panel zeros for the gate that is not its own */
            const size_t gate = filled(t, p, last) / PANEL_VECTORS;
            for (size_t i = 0; gate < t->kernels->lanes && i < K[n] * gate; i++)
                put(t, w,
                    (ptrdiff_t)(last * (size_t)p->w_panel + i / gate * w_k + i % gate +
                                (n ? 0 : NARROW_VECTORS * gate)),
                    0);
            term->w = w;
            continue;
        }
        void *w = place_panels(t, name, p, (size_t)p->w_panel, K[n], w_k);
        for (size_t k = 0; k < K[n]; k++)
            fill_panels(t, e, p, units, real_at(t, w, (ptrdiff_t)(k * w_k)), p->w_panel);
        term->w = w;
    }
}

/* What sums start from: the same for all rows, or sums of each row, panel by panel or in rows. */
static void place_init(struct trial *t, const struct ending *e, struct cylstm_product *p,
                       size_t units)
{
    const size_t style = size_between(t, 0, 2, 0),
                 row =
                     (style == 2 ? round_up(p->columns, t->kernels->lanes) : width_of(t)) + gap(t),
                 rows = style && p->rows ? p->rows : 1;
    p->init_row = style ? (ptrdiff_t)row : 0;
    p->init_panel = style == 2 ? (ptrdiff_t)width_of(t) : (ptrdiff_t)(rows * row + gap(t));
    void *init = place_panels(t, "init", p, (size_t)p->init_panel, rows, row);
    for (size_t r = 0; r < rows; r++)
        fill_panels(t, e, p, units, real_at(t, init, (ptrdiff_t)(r * row)), p->init_panel);
    p->init = init;
}

static void place_addend(struct trial *t, const struct ending *e, struct cylstm_product *p,
                         size_t units)
{
    if (!chance(t, 3)) return;
    p->addend = place(t, "addend", p->rows, p->columns);
    for (size_t r = 0; r < p->rows; r++) {
        void *row = row_of(t, &p->addend, r);
        for (size_t c = 0; e->pads && c < p->columns; c++) put(t, row, (ptrdiff_t)c, 0);
        for (size_t gate = 0; gate < e->gates; gate++)
            for (size_t u = 0; u < units; u++)
                put(t, row, (ptrdiff_t)column_of(t, e, p, gate, u), number(t, e->grain));
    }
}

/* init + both terms + addend, from what `init` is. */
static struct near sum_of(struct trial *t, const struct cylstm_product *p, size_t row,
                          size_t column, double init)
{
    long double sum = init, size = fabs(init);
    size_t links = 2;
    for (size_t n = 0; n < 2; n++) {
        const struct cylstm_term *term = &p->term[n];
        const void *a = term->K ? row_of(t, &term->a, row) : NULL;
        const size_t whole = filled(t, p, column / width_of(t)) == width_of(t),
                     gate = filled(t, p, column / width_of(t)) / PANEL_VECTORS;
        if (p->narrow && column % width_of(t) / gate == (n ? 0 : NARROW_VECTORS))
            continue; /* the term meets none of it */
        const ptrdiff_t at = in_panels(t, column, p->w_panel) -
                             (ptrdiff_t)(p->narrow && whole ? n * t->kernels->lanes : 0);
        for (size_t k = 0; k < term->K; k++) {
            const long double link = (long double)get(t, a, (ptrdiff_t)k * term->a_k) *
                                     get(t, term->w, at + (ptrdiff_t)k * p->w_k);
            sum += link;
            size += fabsl(link);
        }
        links += term->K;
    }
    if (p->addend.base) {
        const double add = get(t, row_of(t, &p->addend, row), (ptrdiff_t)column);
        sum += add;
        size += fabs(add);
    }
    return (struct near){sum, (long double)links * epsilon(t) * size};
}

/* Judge the units of panels [begin, end) in rows [row, row_end). The sums started from `init`. */
static void judge_units(struct trial *t, const struct ending *e, const struct cylstm_product *p,
                        size_t units, size_t row, size_t row_end)
{
    const size_t all = e->pads ? round_up(units, t->kernels->lanes) : units;
    for (; row < row_end && !bench; row++)
        for (size_t u = 0; u < all; u++) {
            struct near sum[MAX_GATES] = {{0, 0}};
            const size_t panel = u / (width_of(t) / e->gates);
            if (panel < p->panel_begin || panel >= p->panel_end) continue;
            for (size_t gate = 0; gate < e->gates && u < units; gate++) {
                const size_t column = column_of(t, e, p, gate, u);
                const ptrdiff_t at = in_panels(t, column, p->init_panel);
                sum[gate] =
                    sum_of(t, p, row, column, get(t, p->init, at + (ptrdiff_t)row * p->init_row));
                if (e->grain != 0) sum[gate].within = 0;
            }
            padding = u >= units;
            e->judge(t, p, row, u, sum);
        }
}

/* Some sizes come in some trials only, as they take time: rows that do not fit L2 with a K for which
 * panels take turns, and a result that does not. */
void check_product(const struct check *check, struct trial *t)
{
    const struct ending *e = check->ending;
    const int long_K = t->seed % 64 == 17 && e->gates == 1 && !bench,
              large = t->seed % 64 == 41 && e->gates == 1 && !bench;
    size_t rows = size_between(t, 0, 26, t->seed % 2 ? 1 : 32), units = size_between(t, 1, 75, 64),
           K[2] = {size_between(t, 0, 40, 64), size_between(t, 0, 40, 64)};
    for (int n = 0; n < 2; n++) K[n] = chance(t, 5) ? 0 : K[n];
    if (chance(t, 5)) rows = 1;
    if (long_K) rows += 100, units += 90, K[0] += 1000;
    if (large) rows += 240, units += 410, K[0] %= 3, K[1] %= 3;
    if (e->narrow) /* four gates, in whole vectors */
        units = round_up(round_up(units, t->kernels->lanes), PANEL_VECTORS), record = NULL;
    struct cylstm_product p = {.rows = rows, .descending = (int)below(t, 2), .narrow = e->narrow};
    e->place(t, &p, units);
    place_terms(t, e, &p, units, K);
    place_init(t, e, &p, units);
    place_addend(t, e, &p, units);
    p.panel_end = panels_of(t, &p);
    p.streams = !p.finish && !p.addend.base && chance(t, 2);
    if (chance(t, 2)) { /* a part of the panels, other columns on each set */
        p.panel_begin = below(t, p.panel_end + 1);
        p.panel_end = p.panel_begin + below(t, p.panel_end - p.panel_begin + 1);
        record = NULL;
    }
    describe(t,
             "%zu rows, %zu units, K %zu + %zu, panels %zu to %zu of %zu%s, a_k %td, w_panel %td, "
             "w_k %td, init_row %td%s%s%s%s%s%s",
             rows, units, K[0], K[1], p.panel_begin, p.panel_end, panels_of(t, &p),
             p.descending ? ", descending" : "", p.term[0].a_k, p.w_panel, p.w_k, p.init_row,
             p.addend.base ? ", addend" : "", p.streams ? ", streams" : "",
             p.cell.tape.base ? ", tape" : "", p.cell.y.base ? ", y" : "",
             p.cell.h.base ? ", h" : "", p.cell.options ? ", options" : "");
    CALL(t, t->kernels->product(&p));
    judge_units(t, e, &p, units, 0, rows);
}

/* The end alone, of sums that came from elsewhere: they are taken for `init`. */
void check_finish(const struct check *check, struct trial *t)
{
    const struct ending *e = check->ending;
    const size_t all_rows = size_between(t, 1, 26, t->seed % 2 ? 1 : 32),
                 units = size_between(t, 1, 75, 64);
    struct cylstm_product p = {.rows = all_rows};
    e->place(t, &p, units);
    place_addend(t, e, &p, units);
    const size_t panel = below(t, panels_of(t, &p)), row = bench ? 0 : below(t, all_rows),
                 rows = size_between(t, 1, all_rows - row, all_rows), width = width_of(t);
    void *sums = guarded_reals(t, "sums", rows * width),
         *given = guarded_reals(t, "copy of sums", all_rows * width);
    memset(given, 0, all_rows * width * real_size(t)); /* as are all columns that only pad */
    for (size_t r = row; r < row + rows; r++)
        for (size_t gate = 0; gate < e->gates; gate++)
            for (size_t u = 0; u < units; u++) {
                const size_t column = column_of(t, e, &p, gate, u);
                if (column / width == panel)
                    put(t, given, (ptrdiff_t)(r * width + column % width),
                        number(t, e->grain) * number(t, 1));
            }
    memcpy(sums, real_at(t, given, (ptrdiff_t)(row * width)), rows * width * real_size(t));
    block_of(t, sums)->scratch = 1;
    p.init = given;
    p.init_row = (ptrdiff_t)width;
    p.panel_begin = panel;
    p.panel_end = panel + 1;
    record = NULL;
    describe(t, "rows %zu to %zu of %zu, %zu units, panel %zu of %zu%s", row, row + rows, all_rows,
             units, panel, panels_of(t, &p), p.addend.base ? ", addend" : "");
    CALL(t, t->kernels->finish(&p, panel, row, rows, sums));
    judge_units(t, e, &p, units, row, row + rows);
}
