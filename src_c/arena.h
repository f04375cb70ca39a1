/* arena.h -- scratch memory, carved from one piece.
 *
 * Carving from a NULL arena counts, carving from a real one gives: the size functions and the
 * passes run the same code, so that size and use cannot drift apart.
 */
#ifndef CYLSTM_ARENA_H
#define CYLSTM_ARENA_H

#include "layout.h"

struct cylstm_arena {
    char *base;
    size_t used;
};

static inline void *cylstm_carve(struct cylstm_arena *arena, size_t count, size_t size)
{
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used =
        cylstm_plus(arena->used, cylstm_round_up(cylstm_times(count, size), CYLSTM_ALIGN));
    return piece;
}

#endif
