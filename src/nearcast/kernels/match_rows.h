// Equal rows of two tables: ids in ascending order, and vectors.
//
// Knows no files: offsets, bytes and positions only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearcast {

struct SortedTexts {                   // ascending by bytes, without repetitions, where they are merged
    const int64_t* offsets;            // (n + 1,) where each text begins
    const char* bytes;
    size_t n;
};

// Writes the position of each of `texts` among `others`, -1 for none. One merge of both.
void match_texts(const SortedTexts& texts, const SortedTexts& others, int64_t* matches);

// Writes where each of n texts would begin if they followed each other, (n + 1,). Returns whether int32 can hold it.
bool place_texts(const SortedTexts& texts, const int64_t* positions, size_t n, int32_t* offsets);

// Writes the n texts one after the other.
void copy_texts(const SortedTexts& texts, const int64_t* positions, size_t n, char* bytes);

}  // namespace nearcast
