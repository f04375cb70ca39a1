/* pool.c -- the pool by itself: what it does about helpers that are held up, stopped or refused.
 * test_pool.py says what each case should print.
 *
 *     cc -std=c11 -pthread -Isrc_c -Wl,--wrap=pthread_create tests/pool.c <the core> -o pool
 */
#define _GNU_SOURCE
#include "cylstm.h"
#include "threads.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MS = 1000000 };

static atomic_int helped; /* shares that helpers did */
static int refuse;        /* to create threads */
static int held_up;       /* ms that a helper takes for its share */

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    return refuse ? 11 /* EAGAIN */ : __real_pthread_create(thread, attr, run, arg);
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static void pause_ms(int ms) { nanosleep(&(struct timespec){0, (long)ms * MS}, NULL); }

/* The caller's shares take a millisecond in which its core is free; a helper's none, or as long as
 * it is held up. */
static void share(void *arg, size_t n, int caller)
{
    (void)arg, (void)n;
    if (caller) {
        pause_ms(1);
        return;
    }
    atomic_fetch_add(&helped, 1);
    pause_ms(held_up);
}

/* A call of one phase; returns whether somebody helped. */
static int call(int threads)
{
    const int before = atomic_load(&helped);
    struct cylstm_team team = cylstm_begin_team(threads, 0);
    cylstm_run_phase(&team, share, NULL, (size_t)threads);
    cylstm_end_team(&team);
    return atomic_load(&helped) != before;
}

/* A helper is held up once for `ms`; how long until one helps again? */
static double time_away(int ms)
{
    while (!call(2)) continue;
    held_up = ms;
    while (!call(2)) continue;
    const double since = now_ms();
    held_up = 0;
    while (!call(2)) continue;
    return now_ms() - since;
}

/* A thread that was joined may still be listed for a moment. */
static int threads_alive(void)
{
    int count = 0;
    for (const double end = now_ms() + 5000; count != 1 && now_ms() < end;) {
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks) return -1;
        count = 0;
        for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
        closedir(tasks);
    }
    return count;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (!strcmp(name, "rest")) {
        printf("%.1f\n", time_away(20));
    } else if (!strcmp(name, "doubling")) { /* held up every time: how often in two seconds? */
        held_up = 20;
        for (const double end = now_ms() + 2000; now_ms() < end;) (void)call(2);
        printf("%d\n", atomic_load(&helped));
    } else if (!strcmp(name, "forgotten")) {
        held_up = 20;
        for (const double end = now_ms() + 1000; now_ms() < end;) (void)call(2);
        held_up = 0;
        for (const int enough = atomic_load(&helped) + 400; atomic_load(&helped) < enough;)
            (void)call(2);
        printf("%.1f\n", time_away(20));
    } else if (!strcmp(name, "one core")) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET((unsigned)sched_getcpu(), &one);
        if (sched_setaffinity(0, sizeof one, &one)) return 2;
        for (int n = 0; n < 50; n++) (void)call(2);
        printf("%d\n", atomic_load(&helped));
    } else if (!strcmp(name, "stop")) {
        printf("%d", cylstm_stop_pool()); /* before there is one */
        for (int n = 0; n < 200; n++) {
            const int threads = 2 + n % 3;
            (void)call(threads);
            if (cylstm_pool_helpers() != threads - 1) return 3;
            if (!cylstm_stop_pool() || cylstm_pool_helpers() || threads_alive() != 1) return 4;
        }
        struct cylstm_team team = cylstm_begin_team(2, 0);
        printf(" %d", cylstm_stop_pool()); /* in a call */
        cylstm_end_team(&team);
        printf(" %d", cylstm_stop_pool());
        printf(" %d\n", cylstm_pool_helpers());
    } else if (!strcmp(name, "refused")) {
        refuse = 1;
        for (int n = 0; n < 10; n++) (void)call(3);
        printf("%d %d", cylstm_pool_helpers(), atomic_load(&helped));
        refuse = 0;
        (void)call(2);
        refuse = 1;
        (void)call(4);
        printf(" %d\n", cylstm_pool_helpers());
    } else {
        return 1;
    }
    return 0;
}
