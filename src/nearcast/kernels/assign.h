// The nearest centre of every row, by 8-bit arithmetic that is equal on every instruction set.
//
// Centres lie in groups; a row is compared with the centres of its best groups alone. Needs no buffers: the best value is
// a running maximum in each of 16 lanes.
#pragma once

#include "join.h"

namespace nearcast {

struct AssignJob {
    const int8_t* codes;         // (any, width)
    int levels;                  // of the codes: 127, or the 63 of every instruction set
    const double* scales;        // of the codes
    const uint32_t* rows;        // (n,) rows of the codes to assign
    size_t n;
    PackedItems centres;         // one block per group
    const PackedItems* tops;     // one block with the groups' own centres, in their order; null: every group is probed
    size_t probes;               // groups probed per row, at least 1
    size_t threads;
    uint32_t* nearest;           // (n,) number of the best centre, the first in their order if several are; kNoItem: none
};

void assign(const KernelTable&, const AssignJob&);

// The values of all centres for n rows, (n, places): NaN where a tile holds no centre. Every tile must lie in a block.
void centre_values(const KernelTable&, const RoundedQueries& rows, size_t n, const PackedItems& centres, size_t threads,
                   float* values);

}  // namespace nearcast
