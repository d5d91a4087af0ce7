// Masks of a strip's items for many queries, in plain loops that the compiler vectorises. Included like body_score.h.

[[maybe_unused]] void interval_masks(const int32_t* codes, size_t items, const int32_t* low, const int32_t* high,
                                     size_t n, uint64_t* masks) {
    for (size_t row = 0; row < n; ++row) {
        uint64_t mask = 0;
        for (size_t i = 0; i < items; ++i) mask |= uint64_t(low[row] <= codes[i] && codes[i] <= high[row]) << i;
        masks[row] = mask;
    }
}

[[maybe_unused]] void overlap_masks(const uint64_t* item_words, size_t stride, size_t items,
                                    const uint64_t* query_words, size_t words, size_t n, uint64_t* masks) {
    for (size_t row = 0; row < n; ++row) {
        uint64_t mask = 0;
        for (size_t w = 0; w < words; ++w)
            for (size_t i = 0; i < items; ++i)
                mask |= uint64_t((item_words[w * stride + i] & query_words[row * words + w]) != 0) << i;
        masks[row] = mask;
    }
}
