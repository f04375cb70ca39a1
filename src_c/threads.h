/* threads.h -- the pool, as the passes see it: a team that runs phases.
 *
 * A phase is a function run once for each share 0 <= share < shares. Share j belongs to
 * helper j (the caller takes share 0), so that a core meets the same weights again in
 * the next phase. A helper claims its share by checking in; the caller does every share
 * that is not claimed by the time it is free, so it never waits for a helper that has
 * not checked in, and a pool without threads gives the same bits.
 */
#ifndef CYLSTM_THREADS_H
#define CYLSTM_THREADS_H

#include <stddef.h>
#include <stdint.h>

struct cylstm_team {
    int threads; /* 1: no helpers, phases run on the caller */
    int wanted;  /* how many there were to be */
};

typedef void cylstm_phase(void *arg, size_t share, int caller);

/* Begin a stretch of phases with up to `threads` threads. Always succeeds: where the
 * pool is busy with another call, or has no thread to give, the team is the caller. Small
 * work (`small`) is shared only in a row of calls that follow closely on one another, as in a
 * loop of steps: to wake a helper for less costs more than the help is worth. */
struct cylstm_team cylstm_begin_team(int threads, int small);
void cylstm_run_phase(struct cylstm_team *team, cylstm_phase *phase, void *arg, size_t shares);
void cylstm_end_team(struct cylstm_team *team);

#endif
