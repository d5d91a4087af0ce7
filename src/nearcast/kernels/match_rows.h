// Equal rows of two tables: ids in ascending order, and vectors.
//
// Knows no files: offsets, bytes and positions only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearcast {

struct SortedTexts {                   // ascending by bytes, without repetitions
    const int64_t* offsets;            // (n + 1,) where each text begins
    const char* bytes;
    size_t n;
};

// Writes the position of each of `texts` among `others`, -1 for none. One merge of both.
void match_texts(const SortedTexts& texts, const SortedTexts& others, int64_t* matches);

}  // namespace nearcast
