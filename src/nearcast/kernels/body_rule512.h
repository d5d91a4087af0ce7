// Masks of a strip's items for many queries, in 512-bit registers. Included like body_score.h.
//
// The items of a strip are kept in registers, and each query costs two broadcasts and eight comparisons.

template <size_t Tiles>
void interval_strip(const int32_t* codes, const int32_t* low, const int32_t* high, size_t n, uint64_t* masks) {
    __m512i items[Tiles];
    for (size_t t = 0; t < Tiles; ++t) items[t] = _mm512_loadu_si512(codes + t * kTileItems);
    for (size_t row = 0; row < n; ++row) {
        const __m512i from = _mm512_set1_epi32(low[row]), to = _mm512_set1_epi32(high[row]);
        uint64_t mask = 0;
        for (size_t t = 0; t < Tiles; ++t) {
            const __mmask16 above = _mm512_cmp_epi32_mask(items[t], from, _MM_CMPINT_NLT);
            mask |= uint64_t(_mm512_mask_cmp_epi32_mask(above, items[t], to, _MM_CMPINT_LE)) << (t * kTileItems);
        }
        masks[row] = mask;
    }
}

void interval_masks(const int32_t* codes, size_t items, const int32_t* low, const int32_t* high, size_t n,
                    uint64_t* masks) {
    switch (items / kTileItems) {
        case 4: return interval_strip<4>(codes, low, high, n, masks);
        case 3: return interval_strip<3>(codes, low, high, n, masks);
        case 2: return interval_strip<2>(codes, low, high, n, masks);
        default: return interval_strip<1>(codes, low, high, n, masks);
    }
}

void overlap_masks(const uint64_t* item_words, size_t stride, size_t items, const uint64_t* query_words, size_t words,
                   size_t n, uint64_t* masks) {
    const size_t eights = items / 8;
    for (size_t row = 0; words == 0 && row < n; ++row) masks[row] = 0;
    for (size_t w = 0; w < words; ++w) {
        __m512i held[8];
        for (size_t e = 0; e < 8; ++e)
            held[e] = e < eights ? _mm512_loadu_si512(item_words + w * stride + e * 8) : _mm512_setzero_si512();
        for (size_t row = 0; row < n; ++row) {
            const __m512i asked = _mm512_set1_epi64(static_cast<long long>(query_words[row * words + w]));
            uint64_t mask = w == 0 ? 0 : masks[row];
            for (size_t e = 0; e < 8; ++e) mask |= uint64_t(_mm512_test_epi64_mask(held[e], asked)) << (e * 8);
            masks[row] = mask;
        }
    }
}
