/* kernels.c -- every function of every kernel set against a plain loop in long double.
 *
 *     cc -std=c11 -ffp-contract=off -O2 -pthread -Isrc_c -o kernels tests/kernels*.c src_c/[a-z]*.c \
 *         src_c/kernels/[a-z]*.c -lm
 *     ./kernels                              64 trials of each check on each set
 *     ./kernels --seed 9 --trials 1 --only product --isa avx2
 *     ./kernels --bench --only product       ticks of the fastest call, of 32 rows; --seed 1: of one;
 *                                            --seed 2: of 32 by options
 *
 * A trial draws sizes, strides, offsets and numbers from its seed, the same for every set, and runs
 * twice: all blocks end, then start, at a page that may not be touched (guarded.h). A result must be
 * as near to the truth as its arithmetic allows: where inputs are small integers, that is exactly.
 * Sets that round alike (fused or not, so that the portable set is one of them) must agree to the
 * bit. What a kernel has no business to write must be as it was.
 *
 * A new function of the kernel set gets a row in `checks`, and its check where others of its kind are:
 * kernels_product.c, kernels_lstm.c, kernels_gru.c, kernels_norm.c, kernels_norm_products.c, kernels_zoneout.c, kernels_compact.c,
 * kernels_arrays.c. A new end of a product, such as the cell of another network, is a struct ending: where its operands lie, and what
 * is true of a unit.
 */
#define _DEFAULT_SOURCE
#include "kernels_check.h"

enum { TRIALS = 64 };

/* A product that ends in a cell, and the end alone, of sums that came from elsewhere. */
#define CELL(NAME) \
    {"product_" #NAME, check_product, &NAME}, {"finish_" #NAME, check_finish, &NAME}, \
        {"product_" #NAME "_back", check_product, &NAME##_back}, \
    { \
        "finish_" #NAME "_back", check_finish, &NAME##_back \
    }

#define TANGENT(NAME) \
    {"product_" #NAME, check_product, &NAME}, { "finish_" #NAME, check_finish, &NAME }

static const struct check checks[] = {
    {"product", check_product, &store_exactly},
    {"product_rounded", check_product, &store},
    {"product_narrow", check_product, &store_narrow},
    {"finish", check_finish, &store_exactly},
    CELL(lstm),
    CELL(gru),
    CELL(gru_gates),
    CELL(gru_candidate),
    CELL(rnn),
    CELL(projection),
    CELL(zoneout),
    TANGENT(lstm_tangent),
    TANGENT(gru_tangent),
    TANGENT(gru_gates_tangent),
    TANGENT(gru_candidate_tangent),
    TANGENT(rnn_tangent),
    TANGENT(projection_tangent),
    {"product_norm_keep", check_product, &norm_keep},
    {"finish_norm_keep", check_finish, &norm_keep},
    {"norm", check_norm, NULL},
    {"norm_back", check_norm_back, NULL},
    {"norm_tangent", check_norm_tangent, NULL},
    {"norm_products", check_norm_products, NULL},
    {"norm_products_back", check_norm_products_back, NULL},
    {"norm_products_tangent", check_norm_products_tangent, NULL},
    {"bf16", check_bf16, NULL},
    {"bf16_products", check_bf16_products, NULL},
    {"bf16_rounded", check_bf16_rounded, NULL},
    {"round_row", check_round_row, NULL},
    {"int8", check_int8, NULL},
    {"quantize", check_quantize, NULL},
    {"transpose", check_transpose, NULL},
    {"dot_rows", check_dot_rows, NULL},
    {"sum_biases", check_sum_biases, NULL},
    {"sum_products", check_sum_products, NULL},
    {"dropout", check_dropout, NULL},
    {"adam", check_adam, NULL},
    {"sgd", check_sgd, NULL},
    {"sigmoid", check_sigmoid, NULL},
    {"tanh", check_tanh, NULL},
};
enum { CHECKS = sizeof checks / sizeof checks[0] };

static struct record records[2];

/* Whether a * b + c is rounded once: (1 + e)(1 - e) - 1 is then -e^2, else 0. */
static int is_fused(const struct cylstm_kernels *k)
{
    double a[MAX_VL], w[MAX_VL], init[MAX_VL], out[MAX_VL];
    struct trial t = {.kernels = k};
    const double e = (double)epsilon(&t);
    memset(w, 0, sizeof w);
    memset(init, 0, sizeof init);
    put(&t, a, 0, 1 + e);
    put(&t, w, 0, 1 - e);
    put(&t, init, 0, -1);
    k->product(&(struct cylstm_product){.rows = 1,
                                        .panel_end = 1,
                                        .columns = 1,
                                        .term = {{.a = {.base = a}, .a_k = 1, .K = 1, .w = w}},
                                        .init = init,
                                        .out = {.base = out}});
    return get(&t, out, 0) != 0;
}

/* One trial of a check on one set. Returns whether it failed. */
static int run(const struct check *check, const struct cylstm_kernels *kernels, uint64_t seed)
{
    int failed = 0;
    record = &records[is_fused(kernels)];
    for (int at_end = 1; at_end >= 0 && !failed; at_end--) {
        struct trial t = {.kernels = kernels, .seed = seed, .state = seed, .at_end = at_end};
        snprintf(t.title, sizeof t.title, "%s f%d: --seed %llu --trials 1 --only %s --isa %s",
                 kernels->isa, kernels->bits, (unsigned long long)seed, check->name, kernels->isa);
        watch(&t);
        padding = 0;
        if (record) recorded = 0;
        check->run(check, &t);
        if (!bench) untouched(&t);
        if (record && !record->isa) {
            record->isa = kernels->isa;
            record->count = recorded;
        }
        if (bench && !at_end) /* masked lanes beyond the end take long where nothing is mapped */
            printf("%-18s %-7s f%d %8llu  %s\n", check->name, kernels->isa, kernels->bits,
                   (unsigned long long)fewest_ticks, t.shape);
        failed = t.failed;
        release(&t);
    }
    return failed;
}

int main(int argc, char **argv)
{
    uint64_t seed = 0, trials = TRIALS;
    const char *only = "", *isa = NULL;
    for (int n = 1; n < argc; n++) {
        const char *value = n + 1 < argc ? argv[n + 1] : "";
        if (!strcmp(argv[n], "--bench")) {
            bench = 1;
            trials = 1;
            continue;
        }
        if (!strcmp(argv[n], "--seed"))
            seed = strtoull(value, NULL, 10);
        else if (!strcmp(argv[n], "--trials"))
            trials = strtoull(value, NULL, 10);
        else if (!strcmp(argv[n], "--only"))
            only = value;
        else if (!strcmp(argv[n], "--isa"))
            isa = value;
        else {
            fprintf(stderr,
                    "usage: %s [--seed N] [--trials N] [--only CHECK] [--isa NAME] [--bench]\n",
                    argv[0]);
            return 2;
        }
        n++;
    }
    size_t done = 0, failures = 0;
    for (size_t c = 0; c < CHECKS; c++) {
        if (strncmp(checks[c].name, only, strlen(only))) continue;
        for (uint64_t n = 0; n < trials; n++)
            for (int bits = 32; bits <= 64; bits += 32) {
                for (int fused = 0; fused < 2; fused++)
                    records[fused].isa = NULL, records[fused].count = 0;
                for (size_t s = 0; s < cylstm_isa_count(); s++) {
                    if (!cylstm_isa_usable(s) || (isa && strcmp(isa, cylstm_isa_name(s)))) continue;
                    failures += (size_t)run(
                        &checks[c], cylstm_find_kernels(cylstm_isa_name(s), bits), seed + n);
                    done++;
                }
            }
    }
    if (!bench) printf("%zu trials, %zu failed\n", done, failures);
    return failures || !done;
}
