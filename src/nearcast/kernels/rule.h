// Eligibility of pairs of a query and an item: the leaves of a compiled rule, and their evaluation in a join.
//
// Equal to nearcast.knn.eligible. A rule is evaluated in three ways: whether any item of a block may be eligible for a query,
// which items of a strip are (as bits, for all queries of a panel at once), and whether one pair is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace nearcast {

enum class LeafKind : int { interval = 0, overlap = 1, shared = 2 };

struct RuleLeaf {
    LeafKind kind;
    bool negated;                     // of overlap and shared: true where nothing is shared
    // interval: low <= code <= high
    const int32_t* codes;             // (places,) by place in the tiles; -1: null, or no item
    const int32_t* low;               // (n,)
    const int32_t* high;              // (n,)
    const int32_t* block_low;         // (blocks,) least code of a block that is not null
    const int32_t* block_high;        // (blocks,) largest; below block_low where all are null
    // overlap: the words share a bit
    const uint64_t* item_words;       // (words, places)
    const uint64_t* query_words;      // (n, words)
    const uint64_t* block_words;      // (blocks, words) all bits of a block's items
    size_t words;
    // shared: the ascending lists share a value
    const int64_t* item_starts;       // (m + 1,) by position of the item
    const int32_t* item_values;
    const int64_t* query_starts;      // (n + 1,)
    const int32_t* query_values;
};

enum class StepKind : int32_t { leaf = 0, all = 1, any = 2 };

struct RuleStep {                     // a tree in postfix: a leaf by its number, or the last `count` results combined
    StepKind kind;
    int32_t count;
};

struct RuleProgram {                  // made by make_program alone, which checks the steps; empty: true
    std::vector<RuleStep> steps;
    bool leaves_alone = true;         // no combination but `all`: true where every leaf of `leaves` is
    std::vector<size_t> leaves;       // of the steps, in their order
    size_t depth = 0;                 // results that wait at most
};

// Throws std::invalid_argument where the steps do not leave one result, ask for a leaf that is not there, or need more
// than kRuleDepth results to wait.
RuleProgram make_program(std::vector<RuleStep> steps, size_t n_leaves);

struct Rule {
    std::vector<RuleLeaf> leaves;
    RuleProgram dense;                // the part for masks: intervals and overlaps
    RuleProgram lazy;                 // the rest, evaluated after the threshold; both must hold
    const uint8_t* masked;            // (n,) whether the query uses masks; else the whole rule is evaluated after the threshold
    size_t places;
};

constexpr size_t kRuleDepth = 64;     // of results that wait

// Whether a block may hold an eligible item.
bool may_hold(const Rule& rule, size_t query, size_t block);

// Whether one item, at `place` in the tiles and `position` among the items, is eligible. dense_known: the masks are applied already.
bool holds(const Rule& rule, size_t query, size_t place, size_t position, bool dense_known);

// Masks of strips for the rows of a panel: bit i of a mask is the i-th item of the strip.
class RuleMasks {
public:
    RuleMasks(const KernelTable& kernels, const Rule& rule, size_t room);
    // Reads the values of the panel's queries; n rows, padded to `padded` rows without an eligible item.
    void take(const uint32_t* queries, size_t n, size_t padded);
    // Masks of the items at first..first+items-1.
    const uint64_t* of(size_t first, size_t items);
    bool any() const { return any_; } // whether a row of the panel is masked at all

private:
    void leaf(const RuleLeaf& leaf, size_t number, size_t first, size_t items, uint64_t* out);

    const KernelTable& kernels_;
    const Rule& rule_;
    size_t room_, n_ = 0, padded_ = 0;  // n_: rows that are masked
    bool any_ = false, every_ = false;
    std::vector<uint32_t> masked_;      // these rows; the others' masks let everything through
    std::vector<uint64_t> all_;         // masks of all rows
    std::vector<std::vector<int32_t>> low_, high_;
    std::vector<std::vector<uint64_t>> words_;
    std::vector<std::vector<uint64_t>> stack_;
};

}  // namespace nearcast
