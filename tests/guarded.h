/* guarded.h -- for tests in C: memory between pages that may not be touched, and draws from a seed.
 *
 * A block ends where such a page starts, or starts where one ends, so that the first byte read or
 * written out of bounds is a fault; the handler prints the block and the trial. Fresh blocks hold
 * NaN: what a test has not filled may not reach a result. Whatever is not expected to change must
 * be as it was: `ready` keeps a copy, `untouched` compares with it.
 */
#ifndef GUARDED_H
#define GUARDED_H

#include "kernels/kernels.h"

#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_BLOCKS = 128 };

struct block {
    const char *name;
    unsigned char *map, *data, *before; /* `before`: a copy of the data */
    size_t map_size, size;
    int scratch; /* may change */
};

struct trial {
    const struct cylstm_kernels *kernels;
    uint64_t seed, state; /* of the generator */
    const uint8_t
        *bytes; /* a fuzzer's: sizes and choices are drawn from them, while there are any */
    size_t bytes_left;
    char title[128]; /* how to run it again */
    char shape[400];
    int at_end; /* blocks end at a page that may not be touched; else they start at one */
    int failed;
    size_t block_count;
    struct block blocks[MAX_BLOCKS];
};

/* ---------------------------------------------------------------------- draws */

/* Steele, Lea and Flood's SplitMix64. */
static inline uint64_t draw(struct trial *t)
{
    uint64_t z = t->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline size_t below(struct trial *t, size_t n)
{
    if (!t->bytes_left) return (size_t)((draw(t) >> 32) % n);
    t->bytes_left--;
    return *t->bytes++ % n;
}

/* In [-1, 1), a number of 23 bits, which every real holds. */
static inline double fraction(struct trial *t) { return (double)(draw(t) >> 40) * 0x1p-23 - 1; }

/* -------------------------------------------------------------------- reports */

/* The first fault of a trial is printed; what follows from it is not. */
static inline void fail(struct trial *t, const char *format, ...)
{
    if (t->failed) return;
    t->failed = 1;
    va_list arguments;
    va_start(arguments, format);
    printf("%s\n    %s\n    ", t->title, t->shape);
    vprintf(format, arguments);
    printf("\n");
    fflush(stdout);
    va_end(arguments);
}

static struct trial *watched; /* the trial that is running */

static inline void report_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    const unsigned char *at = info->si_addr;
    const char *name = "nothing known";
    ptrdiff_t offset = 0;
    for (size_t n = 0; n < watched->block_count; n++) {
        const struct block *b = &watched->blocks[n];
        if (at < b->map || at >= b->map + b->map_size) continue;
        name = b->name;
        offset = at < b->data ? at - b->data : at - (b->data + b->size);
    }
    fail(watched, "signal %d: touched memory %td bytes %s %s", number, offset,
         offset < 0 ? "before" : "past the end of", name);
    _exit(1);
}

static inline void watch(struct trial *t)
{
    struct sigaction action = {.sa_sigaction = report_fault, .sa_flags = SA_SIGINFO};
    watched = t;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

/* --------------------------------------------------------------------- memory */

static inline void *guarded(struct trial *t, const char *name, size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
    if (t->block_count == MAX_BLOCKS) abort();
    struct block *b = &t->blocks[t->block_count++];
    *b = (struct block){.name = name, .map_size = whole + 2 * page, .size = size};
    b->map = mmap(NULL, b->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED || (whole && mprotect(b->map + page, whole, PROT_READ | PROT_WRITE)))
        abort();
    b->data = b->map + page + (t->at_end ? whole - size : 0);
    memset(b->data, 0xff, size); /* NaN, in both types */
    return b->data;
}

static inline size_t real_size(const struct trial *t) { return (size_t)t->kernels->bits / 8; }

static inline void *guarded_reals(struct trial *t, const char *name, size_t count)
{
    return guarded(t, name, count * real_size(t));
}

static inline struct block *block_of(struct trial *t, const void *pointer)
{
    const unsigned char *p = pointer;
    for (size_t n = 0; n < t->block_count; n++)
        if (p >= t->blocks[n].data && p <= t->blocks[n].data + t->blocks[n].size)
            return &t->blocks[n];
    abort();
}

/* Copy all blocks there are. */
static inline void ready(struct trial *t)
{
    for (size_t n = 0; n < t->block_count; n++) {
        struct block *b = &t->blocks[n];
        b->before = malloc(b->size + 1);
        if (!b->before) abort();
        memcpy(b->before, b->data, b->size);
    }
}

/* Where a real was copied to. */
static inline void *before(struct trial *t, const void *pointer)
{
    const struct block *b = block_of(t, pointer);
    return b->before + ((const unsigned char *)pointer - b->data);
}

static inline void untouched(struct trial *t)
{
    for (size_t n = 0; n < t->block_count; n++) {
        const struct block *b = &t->blocks[n];
        for (size_t k = 0; k < b->size && b->before && !b->scratch; k++)
            if (b->data[k] != b->before[k]) {
                fail(t, "byte %zu of %s changed, which nothing should have written", k, b->name);
                break;
            }
    }
}

static inline void release(struct trial *t)
{
    for (; t->block_count; t->block_count--) {
        struct block *b = &t->blocks[t->block_count - 1];
        free(b->before);
        munmap(b->map, b->map_size);
    }
}

static inline double get(const struct trial *t, const void *base, ptrdiff_t index)
{
    return t->kernels->bits == 32 ? (double)((const float *)base)[index]
                                  : ((const double *)base)[index];
}

static inline void put(const struct trial *t, void *base, ptrdiff_t index, double value)
{
    if (t->kernels->bits == 32)
        ((float *)base)[index] = (float)value;
    else
        ((double *)base)[index] = value;
}

static inline void *real_at(const struct trial *t, const void *base, ptrdiff_t index)
{
    return (char *)(uintptr_t)base + index * (ptrdiff_t)real_size(t);
}

#endif
