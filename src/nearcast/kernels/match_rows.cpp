// Merges two ascending lists of texts, which are compared by bytes.

#include "match_rows.h"

#include <algorithm>
#include <cstring>

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

}  // namespace nearcast
