/* faults.c -- memory that runs out, for test_faults.py: loaded before the C library, it counts what
 * is allocated and not yet freed, and lets the n-th allocation from `faults_arm(n)` on fail.
 *
 *     cc -std=c11 -shared -fPIC -o libfaults.so tests/faults.c
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long left = -1; /* allocations until the one that fails; below 0: none does */
static atomic_int failed;
static atomic_long alive;

void faults_arm(long n)
{
    atomic_store(&failed, 0);
    atomic_store(&left, n);
}

/* Returns whether an allocation failed. */
int faults_disarm(void)
{
    atomic_store(&left, -1);
    return atomic_load(&failed);
}

long faults_alive(void) { return atomic_load(&alive); }

static int fails(void)
{
    long n = atomic_load(&left);
    while (n >= 0 && !atomic_compare_exchange_weak(&left, &n, n - 1)) continue;
    if (n != 0) return 0;
    atomic_store(&failed, 1);
    errno = ENOMEM;
    return 1;
}

static void *counted(void *p)
{
    if (p) atomic_fetch_add(&alive, 1);
    return p;
}

void *malloc(size_t size) { return fails() ? NULL : counted(__libc_malloc(size)); }

void *calloc(size_t n, size_t size) { return fails() ? NULL : counted(__libc_calloc(n, size)); }

void *realloc(void *p, size_t size)
{
    if (fails()) return NULL;
    void *q = __libc_realloc(p, size);
    return p ? q : counted(q);
}

void *memalign(size_t align, size_t size)
{
    return fails() ? NULL : counted(__libc_memalign(align, size));
}

void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

int posix_memalign(void **p, size_t align, size_t size)
{
    void *q = memalign(align, size);
    if (!q) return ENOMEM;
    *p = q;
    return 0;
}

void free(void *p)
{
    if (p) atomic_fetch_sub(&alive, 1);
    __libc_free(p);
}
