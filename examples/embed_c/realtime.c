/* realtime.c -- an LSTM in a real-time loop: everything is allocated before it starts.
 *
 *     realtime WEIGHTS INPUT OUTPUT [PERIOD]
 *
 * INPUT holds frames of I floats, OUTPUT gets as many frames of R floats (the LSTM's h).
 * A frame is taken every PERIOD microseconds, as from a sound card; 0 runs without pause. */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cylstm.h"

#define MAX_SIZE 65536 /* of any size in a weights file: no product overflows, no file fools us */

static void fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

static void *allocate(size_t size)
{
    void *memory = aligned_alloc(CYLSTM_ALIGN, (size / CYLSTM_ALIGN + 1) * CYLSTM_ALIGN);
    if (!memory) fail("no memory for %zu bytes", size);
    return memset(memory, 0, size); /* the system hands out pages when they are first written */
}

static FILE *open_file(const char *path, const char *mode)
{
    FILE *file = fopen(path, mode);
    if (!file) fail("can't open %s", path);
    return file;
}

/* Returns -1 if there is none of this name. */
static int find_format(const char *name)
{
    static const struct {
        const char *name;
        int format;
    } known[] = {{"f32", CYLSTM_AS_COMPUTED}, {"bf16", CYLSTM_BFLOAT16}, {"int8", CYLSTM_INT8}};
    for (size_t n = 0; n < sizeof known / sizeof *known; n++)
        if (!strcmp(name, known[n].name)) return known[n].format;
    return -1;
}

/* The sizes, and the raw weights: see README.md. */
static float *read_weights(const char *path, struct cylstm_dims *dims)
{
    char format[5];
    FILE *file = open_file(path, "rb");
    *dims = (struct cylstm_dims){.directions = 1, .bits = 32};
    if (fscanf(file, "cylstm-%4s %zu %zu %zu %zu %d", format, &dims->layers, &dims->input,
               &dims->hidden, &dims->proj, &dims->bias) != 6 ||
        fgetc(file) != '\n' || (dims->format = find_format(format)) < 0)
        fail("%s does not start with 'cylstm-FORMAT LAYERS INPUT HIDDEN PROJ BIAS'", path);
    if (!dims->layers || dims->layers > 64 || !dims->input || dims->input > MAX_SIZE ||
        !dims->hidden || dims->hidden > MAX_SIZE || dims->proj >= dims->hidden)
        fail("%s has sizes that make no LSTM", path);
    const size_t count = cylstm_raw_count(dims);
    float *raw = allocate(count * sizeof *raw);
    if (fread(raw, sizeof *raw, count, file) != count || fgetc(file) != EOF)
        fail("%s does not hold the %zu words of weights that its first line promises", path, count);
    fclose(file);
    return raw;
}

/* All frames of a file: x (T, I). */
static float *read_frames(const char *path, size_t I, size_t *T)
{
    FILE *file = open_file(path, "rb");
    fseek(file, 0, SEEK_END);
    *T = (size_t)ftell(file) / (I * sizeof(float));
    rewind(file);
    if (!*T) fail("%s holds no frame of %zu floats", path, I);
    float *x = allocate(*T * I * sizeof *x);
    if (fread(x, I * sizeof *x, *T, file) != *T) fail("can't read %s", path);
    fclose(file);
    return x;
}

static int64_t now(void) /* nanoseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wait_until(int64_t when)
{
    const int64_t left = when - now();
    if (left > 0)
        nanosleep(&(struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000},
                  NULL);
}

static int ascending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report(int64_t *took, size_t T)
{
    double sum = 0;
    for (size_t t = 0; t < T; t++) sum += (double)took[t];
    qsort(took, T, sizeof *took, ascending);
    printf("%zu steps: mean %.2f us, 99.9%% within %.2f us, worst %.2f us\n", T,
           sum / (double)T / 1e3, (double)took[(T - 1) - (T - 1) / 1000] / 1e3,
           (double)took[T - 1] / 1e3);
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc > 5) fail("usage: %s WEIGHTS INPUT OUTPUT [PERIOD]", argv[0]);
    const int64_t period = argc == 5 ? 1000 * atoll(argv[4]) : 0;

    struct cylstm_context ctx; /* one thread, and the best kernels or those that are asked for */
    const char *isa = getenv("CYLSTM_ISA");
    if (!cylstm_init_context(&ctx, isa && *isa ? isa : NULL, 32)) fail("can't run %s here", isa);

    struct cylstm_dims dims;
    float *raw = read_weights(argv[1], &dims);
    void *packed = allocate(cylstm_packed_size(&ctx, &dims));
    cylstm_pack_weights(&ctx, &dims, raw, packed);
    free(raw);

    struct cylstm_plan *plan =
        cylstm_plan_init(&ctx, &dims, 1, allocate(cylstm_plan_size(&ctx, &dims, 1)));

    const size_t I = dims.input, R = dims.proj ? dims.proj : dims.hidden;
    size_t T;
    const float *x = read_frames(argv[2], I, &T);
    float *y = allocate(T * R * sizeof *y);
    int64_t *took = allocate(T * sizeof *took);

    cylstm_plan_run(plan, &ctx, packed, 1, NULL, 1, x, y); /* warms the caches */
    cylstm_plan_set_states(plan, NULL, NULL);

    const int64_t start = now();
    for (size_t t = 0; t < T; t++) {
        wait_until(start + (int64_t)t * period);
        const int64_t begin = now();
        cylstm_plan_run(plan, &ctx, packed, 1, NULL, 1, x + t * I, y + t * R);
        took[t] = now() - begin;
    }

    FILE *out = open_file(argv[3], "wb");
    if (fwrite(y, R * sizeof *y, T, out) != T || fclose(out)) fail("can't write %s", argv[3]);
    report(took, T);
    return 0;
}
