/* unload.c -- a program that loads the core as a shared library, has it compute on two threads and
 * unloads it, again and again.
 *
 *     cc -std=c11 -shared -fPIC -pthread -Isrc_c <the core> -o libcore.so
 *     cc -std=c11 -Isrc_c tests/unload.c -ldl -o unload; ./unload ./libcore.so
 */
#define _GNU_SOURCE
#include "cylstm.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

enum { ROUNDS = 50, WEIGHTS = 1 << 19 };

static float weights[WEIGHTS], grads[WEIGHTS];

/* A thread that was joined may still be listed for a moment. */
static int threads_alive(void)
{
    int count = 0;
    for (const time_t end = time(NULL) + 5; count != 1 && time(NULL) < end;) {
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks) return -1;
        count = 0;
        for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
        closedir(tasks);
    }
    return count;
}

/* Returns the number of helpers that it left. */
static int compute(void *core)
{
    int (*init)(struct cylstm_context *, const char *, int) = dlsym(core, "cylstm_init_context");
    void (*step)(const struct cylstm_context *, const struct cylstm_sgd *, size_t, const void *,
                 const void *, const void *, void *, void *) = dlsym(core, "cylstm_sgd_step");
    int (*helpers)(void) = dlsym(core, "cylstm_pool_helpers");
    struct cylstm_context ctx;
    const struct cylstm_sgd sgd = {.lr = 1, .step = 1};
    if (!init(&ctx, NULL, 32)) return -1;
    ctx.threads = 2;
    step(&ctx, &sgd, WEIGHTS, weights, grads, NULL, weights, NULL);
    return helpers();
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    for (size_t n = 0; n < WEIGHTS; n++) grads[n] = 1;
    for (int round = 0; round < ROUNDS; round++) {
        void *core = dlopen(argv[1], RTLD_NOW);
        if (!core) {
            printf("%s\n", dlerror());
            return 2;
        }
        const int helpers = compute(core);
        dlclose(core);
        if (helpers != 1 || threads_alive() != 1 || dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD)) {
            printf("round %d: %d helpers, then %d threads\n", round, helpers, threads_alive());
            return 1;
        }
    }
    for (size_t n = 0; n < WEIGHTS; n++)
        if (weights[n] != -ROUNDS) return 3;
    printf("%d times\n", ROUNDS);
    return 0;
}
