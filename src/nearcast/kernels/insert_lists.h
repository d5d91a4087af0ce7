// Insertion of a few candidates into sorted lists, in the bytes in which a store keeps them (docs/store-format.md).
//
// Knows no stores: a list is a range of bytes, and a list of another form is left to the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearcast {

enum class IdKind : int { uint32 = 0, int64 = 1, text = 2 };
enum class Inserted : uint8_t { unchanged = 0, changed = 1, other_form = 2 };  // other_form: the list is no full list of k

struct Entrants {                      // candidates that may enter, of every list
    const uint64_t* starts;            // (n + 1,) first entrant of each list
    const uint32_t* items;             // number of the item; the order of numbers is that of ids
    const float* scores;
};

struct ItemIds {                       // ids of the items
    IdKind kind;
    const int64_t* numbers;            // (m,) of integers
    const uint64_t* offsets;           // (m + 1,) of texts
    const char* texts;
};

struct InsertJob {
    const uint8_t* data;               // the lists, one after the other
    const uint64_t* starts;            // (n + 1,) first byte of each list
    Entrants entrants;
    ItemIds ids;
    size_t k;
    uint8_t* out;                      // the new lists
    const uint64_t* out_starts;        // (n + 1,) where they begin; there is room for all entrants
};

// Merges the entrants of one list into it and keeps the k best; equal scores go to the smaller id. Sets the bytes written and
// the last score. An item must not be in the list already.
Inserted insert_list(const InsertJob&, size_t row, uint64_t& size, float& last);

}  // namespace nearcast
