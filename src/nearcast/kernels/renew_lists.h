// The update of sorted lists after items came, left and moved to other positions.
//
// Knows no vectors: positions and scores only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearcast {

struct SortedLists {                   // lists of `width`, best first; -1 for an empty slot
    const int32_t* positions;
    const float* scores;
    size_t width;
};

struct RenewJob {
    SortedLists known;
    const int64_t* chosen;             // (n,) row of each list among the known ones
    const float* bounds;               // (n,) an item outside the list scores less,
    const int64_t* edges;              // (n,) or equal with at least this position, among the items of now
    const int32_t* now;                // new position of each item of the known lists, -1 for none
    size_t items;
    SortedLists fresh;                 // (n,) of new items, with new positions
    const int64_t* rows;               // (n,) row of each list in the results
    int32_t* positions;
    float* scores;
    float* new_bounds;
    int64_t* new_edges;
};

// Merges the items that stay and the new ones that are above the bound, and cuts the list to its width.
void renew_list(const RenewJob&, size_t row);

// The number of a list's items that stay.
int64_t count_left(const int32_t* positions, size_t width, const int32_t* now, size_t items);

}  // namespace nearcast
