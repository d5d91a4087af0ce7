// The order of candidates as one integer.
//
// Knows nothing of queries or thresholds. (The k-th largest value is body_select.h: it is compiled per instruction set.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nearcast {

// One integer that sorts like (score descending, position ascending), so that selection compares single words.
inline uint64_t sort_key(float score, uint32_t position) {
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    bits = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    return (static_cast<uint64_t>(~bits) << 32) | position;
}
inline float key_score(uint64_t key) {
    uint32_t bits = ~static_cast<uint32_t>(key >> 32);
    bits = (bits & 0x80000000u) ? bits & 0x7FFFFFFFu : ~bits;
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
}
inline uint32_t key_position(uint64_t key) { return static_cast<uint32_t>(key); }

}  // namespace nearcast
