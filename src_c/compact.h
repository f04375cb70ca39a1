/* compact.h -- the route of products with weights of fewer bits: blocks of rows, quantised if need be. */
#ifndef CYLSTM_COMPACT_ROUTE_H
#define CYLSTM_COMPACT_ROUTE_H

#include "call.h"
#include "kernels/compact.h"
#include "layout.h"

/* Bytes for the codes of a block of rows of K values in all, those of 16 bits counted twice: what each
 * thread needs of its own. */
size_t cylstm_codes_size(enum cylstm_format_type format, size_t K);

/* Who multiplies by weights of this format; NULL: nobody can here. */
const struct cylstm_compact_kernels *cylstm_compact_kernels(const struct cylstm_context *ctx,
                                                            enum cylstm_format_type format);

/* A product whose `compact` is set. */
void cylstm_multiply_compact(const struct cylstm_call *call, const struct cylstm_product *product);

#endif
