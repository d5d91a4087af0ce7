// The kNN join of queries with packed items: exact, or cell by cell.
//
// Arrays in, arrays out; knows no files and no ids.
#pragma once

#include <functional>
#include <vector>

#include "caps.h"
#include "kernels.h"
#include "rule.h"

namespace nearcast {

struct PackedItems {                  // items as 8-bit tiles, in blocks (a block is a cell, or a run of the whole)
    const uint8_t* codes;             // (tiles, width / 4, 16, 4)
    const float* scales;              // (tiles * 16,) NaN: no item
    const float* offsets;             // (tiles * 16,) added to an inner product (l2), or null
    const uint32_t* order;            // (tiles * 16,) position of the item
    const uint64_t* block_tiles;      // (blocks + 1,) first tile of each block
    const double* block_norms;        // (blocks,) largest length of a rounded item
    const double* block_residuals;    // (blocks,) largest residual
    const double* block_offsets;      // (blocks,) largest size of an offset
    size_t blocks;
    size_t width;
};

struct RoundedQueries {               // in the order in which they are joined: near queries, which probe the same cells
    const int8_t* codes;              // (n, width)
    const int32_t* starts;            // (n,)
    const double* scales;
    const double* residuals;
    const double* norms;              // length after centring and normalising
    const uint32_t* order;            // (n,) row of each in `queries` and in the results; null: the same
};

struct JoinJob {
    Metric metric;
    Vectors queries;
    Vectors items;
    RoundedQueries rounded;
    PackedItems packed;
    const double* item_norms;         // cosine only
    const int64_t* exclude;           // (n,) position that a query must not get, -1 none; or null
    size_t k;
    size_t threads;
    size_t queries_per_job;
    bool values_decide;               // the scan's values are the scores: for choosing cells, where nothing need be exact
    const Rule* rule;                 // which items a query may get; null: all
    std::vector<Cap> caps;            // how many of a group a list may hold; nested, the smallest groups first
    float min_score;                  // worse items are left out; -infinity: none are
    const float* thresholds;          // (queries.n,) least score that each query needs, above min_score or not; or null
    double error_share;               // of the proven bound that the errors are taken to reach; 1: the join is exact
};

// The cells that a query probes. A centre's value is its 8-bit inner product with the query, plus its offset; all of this is
// computed alike by every instruction set, so that the probed cells, and with them the result, are the same everywhere.
struct Probes {
    const RoundedQueries* rounded;    // the queries, rounded on the levels that every instruction set can take
    PackedItems centres;              // one per block of the items, in their order
    PackedItems sample;               // every so many-th of them, from which a query's ranks are read
    size_t first_rank;                // initial probes: centres as good as the sample's first_rank-th
    size_t floor_rank;                // the value of the sample's floor_rank-th centre is the query's baseline
    double slope;                     // then: centres above baseline + slope * (k-th score - baseline) + gap * spread
    double gap;                       // infinity: no more cells
    const double* spreads;            // (n,)
};

struct JoinResult {
    int64_t* positions;               // (n, k)
    float* scores;                    // (n, k)
    uint64_t counters[4];             // pairs written, buffers pruned, candidates rescored, tile rows scanned
};

// How many items each of the job's queries may get.
void count_eligible(const KernelTable&, const PackedItems&, const Rule&, size_t n, size_t threads, int64_t* counts);

void join(const KernelTable&, const JoinJob&, const Probes*, const std::function<void(size_t, size_t)>& report,
          JoinResult&);

}  // namespace nearcast
