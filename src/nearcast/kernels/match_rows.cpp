// Merges two ascending lists of texts, which are compared by bytes, and gathers texts.

#include "match_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace nearcast {

void match_texts(const SortedTexts& texts, const SortedTexts& others, int64_t* matches) {
    auto length = [](const SortedTexts& of, size_t at) { return static_cast<size_t>(of.offsets[at + 1] - of.offsets[at]); };
    size_t other = 0;
    for (size_t at = 0; at < texts.n; ++at) {
        const size_t size = length(texts, at);
        matches[at] = -1;
        for (; other < others.n; ++other) {
            const size_t theirs = length(others, other);
            int order = std::memcmp(texts.bytes + texts.offsets[at], others.bytes + others.offsets[other],
                                    std::min(size, theirs));
            if (order == 0) order = size < theirs ? -1 : size > theirs;
            if (order > 0) continue;  // theirs is smaller
            if (order == 0) matches[at] = static_cast<int64_t>(other++);
            break;
        }
    }
}

bool place_texts(const SortedTexts& texts, const int64_t* positions, size_t n, int32_t* offsets) {
    int64_t place = 0;
    offsets[0] = 0;
    for (size_t i = 0; i < n; ++i) {
        place += texts.offsets[positions[i] + 1] - texts.offsets[positions[i]];
        if (place > std::numeric_limits<int32_t>::max()) return false;
        offsets[i + 1] = static_cast<int32_t>(place);
    }
    return true;
}

void copy_texts(const SortedTexts& texts, const int64_t* positions, size_t n, char* bytes) {
    for (size_t i = 0; i < n; ++i) {
        const int64_t start = texts.offsets[positions[i]];
        const size_t size = static_cast<size_t>(texts.offsets[positions[i] + 1] - start);
        std::memcpy(bytes, texts.bytes + start, size);
        bytes += size;
    }
}

}  // namespace nearcast
