/* limits.c -- what this machine can do at most: multiply-adds, and bytes read by working set.
 *
 *   cc -O3 -march=native -ffp-contract=fast -pthread limits.c -o limits
 *   ./limits THREADS
 *
 * Prints one JSON object: {"f32": GFLOP/s, "f64": GFLOP/s, "read": [[bytes, GB/s], ...]}, each for
 * THREADS threads together, the best of several tries. No intrinsics: GNU vectors of the width
 * that the compiler says the machine has.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

typedef float vf32 __attribute__((vector_size(WIDTH)));
typedef double vf64 __attribute__((vector_size(WIDTH)));

enum {
    CHAINS = 12, /* more than latency x issue width of any FMA unit, fewer than the registers */
    STREAMS = 4,
    TRIES = 30,
    MAX_THREADS = 256
};
static const double TRY_SECONDS = 0.003; /* short, to fit between disturbances */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* EACH(X) is X(0) .. X(11). Named chains: not every compiler keeps a small array in registers. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(k) a##k = {k}, /* not all alike, else they are one */
#define FMA(k) a##k = a##k * b + c;
#define TOTAL(k) +a##k
#define READ(k) a##k += q[k / (CHAINS / STREAMS) * quarter + k % (CHAINS / STREAMS)];

/* Independent chains of a = a * b + c, `rounds` long. */
#define FMA_LOOP(NAME, VEC, REAL) \
    static double NAME(long rounds) \
    { \
        VEC EACH(DECLARE) b = {0}, c = {0}; \
        b += (REAL)0.5; \
        c += (REAL)1; \
        for (long r = 0; r < rounds; r++) { \
            EACH(FMA) \
            __asm__ volatile("" ::: "memory"); /* no shortening of the loop */ \
        } \
        b = EACH(TOTAL); \
        return (double)b[0]; \
    }
FMA_LOOP(fma_f32, vf32, float)
FMA_LOOP(fma_f64, vf64, double)

/* Reads n vectors `sweeps` times, in the way that was the fastest of many tried: four streams, and
 * turning round at each end, as a program may that has a cache smaller than its data. */
static double read_sweeps(const vf32 *p, long n, long sweeps)
{
    vf32 EACH(DECLARE) all;
    long quarter = n / STREAMS, each = CHAINS / STREAMS;
    for (long s = 0; s < sweeps; s++) {
        long step = s % 2 ? -each : each;
        const vf32 *q = s % 2 ? p + quarter - each : p;
        for (long i = 0; i < quarter; i += each, q += step) {
            EACH(READ)
        }
        __asm__ volatile("" ::: "memory"); /* every sweep reads again */
    }
    all = EACH(TOTAL);
    return (double)all[0];
}

/* One measurement: all threads do `work` units at once. */
struct job {
    int kind;        /* 0: f32, 1: f64, 2: reading */
    long work;       /* rounds or sweeps */
    const vf32 *own; /* this thread's part of the working set, `vectors` of them */
    long vectors;
    pthread_barrier_t *gate;
    double seconds, live;
};

static void *run(void *argument)
{
    struct job *j = argument;
    pthread_barrier_wait(j->gate);
    double start = now();
    j->live = j->kind == 0   ? fma_f32(j->work)
              : j->kind == 1 ? fma_f64(j->work)
                             : read_sweeps(j->own, j->vectors, j->work);
    j->seconds = now() - start;
    return NULL;
}

/* The seconds of the slowest of `threads` threads. */
static double together(struct job *jobs, int threads)
{
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t gate;
    pthread_barrier_init(&gate, NULL, (unsigned)threads);
    for (int t = 0; t < threads; t++) jobs[t].gate = &gate;
    for (int t = 1; t < threads; t++) pthread_create(&ids[t], NULL, run, &jobs[t]);
    run(&jobs[0]);
    double worst = jobs[0].seconds;
    for (int t = 1; t < threads; t++) {
        pthread_join(ids[t], NULL);
        if (jobs[t].seconds > worst) worst = jobs[t].seconds;
    }
    pthread_barrier_destroy(&gate);
    return worst;
}

/* Units of work a second for all threads together; the amount is found by doubling. */
static double best_rate(struct job *jobs, int threads)
{
    long work = 1;
    double seconds = 0, best = 0;
    for (;;) {
        for (int t = 0; t < threads; t++) jobs[t].work = work;
        seconds = together(jobs, threads);
        if (seconds >= TRY_SECONDS) break;
        work *= 2;
    }
    for (int n = 0; n < TRIES; n++) {
        double rate = (double)work * threads / together(jobs, threads);
        if (rate > best) best = rate;
    }
    return best;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "THREADS is %d, expected 1 to %d\n", threads, MAX_THREADS);
        return 2;
    }
    static struct job jobs[MAX_THREADS];
    double fma_flops = 2.0 * CHAINS * WIDTH;
    for (int t = 0; t < threads; t++) jobs[t].kind = 0;
    printf("{\"width\": %d, \"f32\": %.1f", WIDTH, best_rate(jobs, threads) * fma_flops / 4e9);
    for (int t = 0; t < threads; t++) jobs[t].kind = 1;
    printf(", \"f64\": %.1f, \"read\": [", best_rate(jobs, threads) * fma_flops / 8e9);

    size_t largest = (size_t)256 << 20;
    char *memory = aligned_alloc((size_t)2 << 20, largest);
    if (!memory) {
        fprintf(stderr, "no memory for a working set of %zu bytes\n", largest);
        return 1;
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, largest, MADV_HUGEPAGE); /* up to twice as fast from 16 MiB on */
#endif
    memset(memory, 1, largest);
    const char *comma = "";
    for (size_t size = (size_t)16 << 10; size <= largest; size += size / 2) {
        size_t each = size / (size_t)threads / (CHAINS * WIDTH) * (CHAINS * WIDTH);
        if (!each) continue;
        for (int t = 0; t < threads; t++) {
            jobs[t].kind = 2;
            jobs[t].own = (const vf32 *)(memory + each * (size_t)t);
            jobs[t].vectors = (long)(each / WIDTH);
        }
        double bytes = best_rate(jobs, threads) * (double)each;
        printf("%s[%zu, %.1f]", comma, each * (size_t)threads, bytes / 1e9);
        comma = ", ";
        fflush(stdout);
    }
    printf("]}\n");
    free(memory);
    return 0;
}
