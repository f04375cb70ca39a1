/* threads.c -- the pool: helper threads that claim shares of a phase.
 *
 * A phase has a number that only grows, kept in one word with its number of shares, so
 * that a helper can't pair one phase with the shares of another. The thread that moves a helper's
 * `claimed` up to that word, by compare-and-swap, runs the share: the helper itself or,
 * when the helper is late, the caller. The description of a phase stays valid until every
 * claimed share is done, because the caller waits for those and only for those.
 *
 * Others may want the cores too: other processes, or threads of this one that spin on after
 * another library's work. A helper that loses its core within a share holds up the call, so
 * it offers its core between shares, long before the system would take it; and it never takes a
 * share where it would only stand in its caller's way, on the same core. What helpers cost all the
 * same is kept account of: after each loss they rest, each time twice as long, until they have
 * made up for it.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getcpu */
#elif !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif
#include "threads.h"

#include "cpu.h"
#include "cylstm.h"

#if defined(_WIN32) || defined(CYLSTM_NO_THREADS)

int cylstm_pool_helpers(void) { return 0; }
int cylstm_stop_pool(void) { return 1; }

struct cylstm_team cylstm_begin_team(int threads, int small)
{
    (void)small;
    return (struct cylstm_team){1, threads};
}

void cylstm_run_phase(struct cylstm_team *team, cylstm_phase *phase, void *arg, size_t shares)
{
    (void)team;
    for (size_t share = 0; share < shares; share++) phase(arg, share, 1);
}

void cylstm_end_team(struct cylstm_team *team) { (void)team; }

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum {
    MAX_HELPERS = 255,
    SHARE_BITS = 16,
    STOP = (1 << SHARE_BITS) - 1, /* in place of a phase's shares: helpers end */
    SPINS_PER_LOOK = 64,          /* pauses between looks at the clock */
    CLOSE_CALLS = 16,             /* small calls in a row that are worth waking helpers for */
    /* in microseconds: */
    SPIN_TIME = 50,        /* how long anyone spins before sleeping */
    AWAKE_TIME = 40,       /* how long after a call helpers surely still spin */
    STALL_TIME = 20,       /* waits up to this are no stall */
    WAKE_TIME = 5,         /* what it costs to wake a helper that then comes too late */
    LONGEST_REST = 200000, /* of helpers that never make up for what they cost */
    CORE_TIME = 1000,      /* how long a helper keeps its core before it offers it to others */
    CPUS_TIME = 10000      /* how long to believe how many CPUs there are */
};

struct helper {
    _Alignas(128) _Atomic uint64_t claimed; /* the last phase whose share was taken */
    _Alignas(128) _Atomic uint64_t done;    /* the last phase whose share was finished */
    atomic_int asleep;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

static struct {
    _Alignas(128) _Atomic uint64_t phase; /* number << SHARE_BITS | shares */
    atomic_int caller_cpu;                /* where the phase was begun; -1: who knows */
    cylstm_phase *run;
    void *arg;
    _Alignas(128)
        atomic_flag busy;  /* held by the call that has the pool; the account is its own: */
    int64_t rest_until;    /* no helpers before */
    int64_t next_rest;     /* how long the next rest is at least */
    int64_t owed;          /* what helpers have cost and not made up for */
    int woken;             /* whether one was woken that has not come yet */
    _Atomic int64_t ended; /* when the last call that wanted helpers did */
    atomic_int row; /* calls up to now that followed closely on one another, at most CLOSE_CALLS */
    atomic_int helpers;
    atomic_int caller_asleep;
    pthread_mutex_t caller_mutex;
    pthread_cond_t caller_wake;
    struct helper helper[MAX_HELPERS];
} pool = {.busy = ATOMIC_FLAG_INIT,
          .caller_mutex = PTHREAD_MUTEX_INITIALIZER,
          .caller_wake = PTHREAD_COND_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static size_t shares_of(uint64_t phase) { return (size_t)(phase & ((1u << SHARE_BITS) - 1)); }

/* Its number; for the pool's holder. */
static uint64_t next_phase(void)
{
    return (atomic_load_explicit(&pool.phase, memory_order_relaxed) >> SHARE_BITS) + 1;
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Spin until `*number` differs from `old` (or equals `want`, if that is not 0), for a
 * bounded time. Returns whether it did. */
static int spin(_Atomic uint64_t *number, uint64_t old, uint64_t want)
{
    int64_t start = 0;
    for (unsigned n = 0;; n++) {
        const uint64_t seen = atomic_load_explicit(number, memory_order_acquire);
        if (want ? seen == want : seen != old) return 1;
        pause_cpu();
        if (n % SPINS_PER_LOOK) continue;
        const int64_t now = now_us();
        if (!n) start = now;
        if (now - start >= SPIN_TIME) return 0;
    }
}

static void wake_caller(void)
{
    if (!atomic_load(&pool.caller_asleep)) return;
    pthread_mutex_lock(&pool.caller_mutex);
    pthread_cond_signal(&pool.caller_wake);
    pthread_mutex_unlock(&pool.caller_mutex);
}

/* Returns how long it took, if it was a stall: a helper that holds its share for far longer than
 * the caller took for its own has lost its core to somebody else. */
static int64_t wait_done(struct helper *h, uint64_t phase, int64_t began)
{
    if (atomic_load_explicit(&h->done, memory_order_acquire) == phase) return 0;
    const int64_t waits = now_us();
    if (!spin(&h->done, 0, phase)) {
        pthread_mutex_lock(&pool.caller_mutex);
        atomic_store(&pool.caller_asleep, 1);
        while (atomic_load(&h->done) != phase)
            pthread_cond_wait(&pool.caller_wake, &pool.caller_mutex);
        atomic_store(&pool.caller_asleep, 0);
        pthread_mutex_unlock(&pool.caller_mutex);
    }
    const int64_t waited = now_us() - waits;
    return waited > STALL_TIME && waited > 3 * (waits - began) ? waited : 0;
}

/* Helpers have just cost so much, or gained it. After a loss they rest, for as long as they cost
 * and twice as long each time, until they have made up for it: then all is forgotten. */
static void keep_account(int64_t cost, int64_t gain)
{
    if (cost) {
        pool.owed += cost;
        if (pool.next_rest < cost) pool.next_rest = cost;
        pool.rest_until = now_us() + pool.next_rest;
        pool.next_rest = 2 * pool.next_rest < LONGEST_REST ? 2 * pool.next_rest : LONGEST_REST;
    } else if (pool.owed && (pool.owed -= gain) <= 0) {
        pool.owed = pool.next_rest = 0;
    }
}

/* Sleep until there is a phase with a share for this helper. */
static void sleep_helper(struct helper *h, size_t share, uint64_t seen)
{
    pthread_mutex_lock(&h->mutex);
    for (;;) {
        atomic_store(&h->asleep, 1);
        const uint64_t phase = atomic_load(&pool.phase);
        if (phase != seen && share < shares_of(phase)) break;
        pthread_cond_wait(&h->wake, &h->mutex);
    }
    atomic_store(&h->asleep, 0);
    pthread_mutex_unlock(&h->mutex);
}

/* Returns whether it slept. */
static int wake_helper(struct helper *h)
{
    if (!atomic_load(&h->asleep) || !atomic_exchange(&h->asleep, 0)) return 0;
    pthread_mutex_lock(&h->mutex);
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->mutex);
    return 1;
}

static int claim(struct helper *h, uint64_t phase)
{
    uint64_t last = atomic_load(&h->claimed);
    return last < phase && atomic_compare_exchange_strong(&h->claimed, &last, phase);
}

/* Systems like to wake a thread where its waker runs. A helper that has taken the core from the
 * very call that it should help goes elsewhere; returns 0 where it can't. */
#if defined(__linux__)
static int this_cpu(void) { return sched_getcpu(); }

static int leave_caller_alone(void)
{
    const int cpu = atomic_load_explicit(&pool.caller_cpu, memory_order_relaxed);
    cpu_set_t may, other;
    if (cpu < 0 || cpu != this_cpu() || sched_getaffinity(0, sizeof may, &may)) return 1;
    other = may;
    CPU_CLR((unsigned)cpu, &other);
    if (!CPU_COUNT(&other)) return 0;
    if (!sched_setaffinity(0, sizeof other, &other)) (void)sched_setaffinity(0, sizeof may, &may);
    return 1;
}

/* Whether this thread, and with it the helpers that it starts, may use a single CPU. */
static int has_one_cpu(int64_t now)
{
    static _Thread_local int64_t asked;
    static _Thread_local int one;
    if (asked && now - asked < CPUS_TIME) return one;
    cpu_set_t may;
    one = !sched_getaffinity(0, sizeof may, &may) && CPU_COUNT(&may) == 1;
    asked = now;
    return one;
}
#else
static int this_cpu(void) { return -1; }
static int leave_caller_alone(void) { return 1; }
static int has_one_cpu(int64_t now)
{
    (void)now;
    return 0;
}
#endif

static void *help(void *arg)
{
    struct helper *h = arg;
    const size_t share = (size_t)(h - pool.helper) + 1;
    uint64_t seen = atomic_load(&h->done);
    int64_t on_core = now_us(); /* since when, as far as we know */
    int stays = 1;
    (void)cylstm_enter_float_mode();
    for (;;) {
        /* a phase of fewer threads is no reason to stay awake */
        if (!stays || !spin(&pool.phase, seen, 0) || share >= shares_of(atomic_load(&pool.phase))) {
            sleep_helper(h, share, seen);
            on_core = now_us();
        }
        seen = atomic_load_explicit(&pool.phase, memory_order_acquire);
        if (shares_of(seen) == STOP) return NULL;
        if (share >= shares_of(seen)) continue;
        stays = leave_caller_alone();
        if (!stays || !claim(h, seen)) continue;
        pool.run(pool.arg, share, 0);
        atomic_store(&h->done, seen);
        wake_caller();
        if (now_us() - on_core < CORE_TIME) continue;
        sched_yield();
        on_core = now_us();
    }
}

/* A forked child has none of its parent's threads, and perhaps its locks mid-air. */
static void forget_threads(void)
{
    atomic_store(&pool.helpers, 0);
    atomic_store(&pool.caller_asleep, 0);
    atomic_flag_clear(&pool.busy);
    pthread_mutex_init(&pool.caller_mutex, NULL);
    pthread_cond_init(&pool.caller_wake, NULL);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_threads); }

static void forget_helper(struct helper *h)
{
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->mutex);
}

static int start_helper(int n)
{
    struct helper *h = &pool.helper[n];
    const uint64_t phase = atomic_load(&pool.phase);
    atomic_store(&h->claimed, phase);
    atomic_store(&h->done, phase);
    atomic_store(&h->asleep, 0);
    pthread_mutex_init(&h->mutex, NULL);
    pthread_cond_init(&h->wake, NULL);
    sigset_t all, old;
    sigfillset(&all); /* signals are the host program's business */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int started = !pthread_create(&h->thread, NULL, help, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!started) forget_helper(h);
    return started;
}

int cylstm_pool_helpers(void) { return atomic_load(&pool.helpers); }

int cylstm_stop_pool(void)
{
    if (atomic_flag_test_and_set(&pool.busy)) return 0;
    const int helpers = atomic_load(&pool.helpers);
    atomic_store(&pool.phase, (next_phase() << SHARE_BITS) | STOP);
    for (int j = 0; j < helpers; j++) {
        struct helper *h = &pool.helper[j];
        (void)wake_helper(h);
        pthread_join(h->thread, NULL);
        forget_helper(h);
    }
    atomic_store(&pool.helpers, 0);
    atomic_flag_clear(&pool.busy);
    return 1;
}

/* A library that is unloaded takes the code of its threads along. */
__attribute__((destructor)) static void stop_at_unload(void) { (void)cylstm_stop_pool(); }

struct cylstm_team cylstm_begin_team(int threads, int small)
{
    struct cylstm_team team = {1, threads};
    if (threads <= 1) return team;
    const int64_t now = now_us();
    if (has_one_cpu(now)) return team;
    const int close = now - atomic_load_explicit(&pool.ended, memory_order_relaxed) <= AWAKE_TIME;
    const int row = !small  ? CLOSE_CALLS
                    : close ? atomic_load_explicit(&pool.row, memory_order_relaxed) + 1
                            : 0;
    atomic_store_explicit(&pool.row, row < CLOSE_CALLS ? row : CLOSE_CALLS, memory_order_relaxed);
    if (row < CLOSE_CALLS) return team;
    pthread_once(&once, watch_forks);
    if (atomic_flag_test_and_set(&pool.busy)) return team;
    const int wanted = (threads - 1 < MAX_HELPERS) ? threads - 1 : MAX_HELPERS;
    int have = atomic_load(&pool.helpers);
    while (have < wanted && start_helper(have)) atomic_store(&pool.helpers, ++have);
    team.threads = 1 + (have < wanted ? have : wanted);
    if (team.threads == 1) atomic_flag_clear(&pool.busy);
    return team;
}

void cylstm_run_phase(struct cylstm_team *team, cylstm_phase *run, void *arg, size_t shares)
{
    const int64_t began = team->threads == 1 || shares == 1 ? 0 : now_us();
    if (!began || began < pool.rest_until) {
        for (size_t share = 0; share < shares; share++) run(arg, share, 1);
        return;
    }
    const size_t helpers =
        shares - 1 < (size_t)team->threads - 1 ? shares - 1 : (size_t)team->threads - 1;
    const uint64_t phase = next_phase() << SHARE_BITS | (helpers + 1);
    pool.run = run;
    pool.arg = arg;
    atomic_store_explicit(&pool.caller_cpu, this_cpu(), memory_order_relaxed);
    atomic_store(&pool.phase, phase);
    for (size_t j = 0; j < helpers; j++) pool.woken |= wake_helper(&pool.helper[j]);
    run(arg, 0, 1);
    const int64_t mine = pool.owed ? now_us() - began : 0; /* for a share */
    for (size_t share = helpers + 1; share < shares; share++) run(arg, share, 1);
    int64_t cost = 0, came = 0;
    for (size_t j = 0; j < helpers; j++) {
        struct helper *h = &pool.helper[j];
        if (!claim(h, phase)) {
            came++;
            continue;
        }
        run(arg, j + 1, 1);
        atomic_store(&h->done, phase);
    }
    if (!came) return;
    pool.woken = 0;
    for (size_t j = 0; j < helpers; j++) cost += wait_done(&pool.helper[j], phase, began);
    if (cost || pool.owed) keep_account(cost, came * mine);
}

void cylstm_end_team(struct cylstm_team *team)
{
    if (team->threads > 1) {
        if (pool.woken) keep_account(WAKE_TIME, 0); /* in vain */
        pool.woken = 0;
        atomic_flag_clear(&pool.busy);
    }
    if (team->wanted > 1) atomic_store_explicit(&pool.ended, now_us(), memory_order_relaxed);
    team->threads = 1;
}

#endif
