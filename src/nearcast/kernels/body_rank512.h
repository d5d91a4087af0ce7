// Values of rows with centres in 512-bit registers: 64 centres by 6 rows, as in the scan, without thresholds or buffers.
//
// Included after dot4. A row's state stays in the cache: 16 lanes of its best values, and their centres.

template <bool Best>
inline void take_values(const CentrePanel& panel, uint32_t slot, const ItemRun& run, const __m512i* sums, size_t tiles) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float* values = panel.values + slot * panel.stride;
    uint32_t* places = Best ? panel.places + slot * kTileItems : nullptr;
    __m512 best = Best ? _mm512_loadu_ps(values) : _mm512_setzero_ps();
    __m512i place = Best ? _mm512_loadu_si512(places) : _mm512_setzero_si512();
    const __m512 weight = _mm512_set1_ps(run.offsets ? panel.weights[slot] : 0.0f);
    for (size_t t = 0; t < tiles; ++t) {
        __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t]), _mm512_loadu_ps(run.scales + t * kTileItems));
        if (run.offsets)
            value = _mm512_add_ps(value, _mm512_mul_ps(_mm512_loadu_ps(run.offsets + t * kTileItems), weight));
        const uint32_t first = run.first + static_cast<uint32_t>(t * kTileItems);
        if (Best) {
            const __mmask16 above = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
            best = _mm512_mask_mov_ps(best, above, value);
            place = _mm512_mask_add_epi32(place, above, lanes, _mm512_set1_epi32(static_cast<int>(first)));
        } else {
            _mm512_storeu_ps(values + first, value);
        }
    }
    if (Best) {
        _mm512_storeu_ps(values, best);
        _mm512_storeu_si512(places, place);
    }
}

template <size_t Tiles, bool Best>
void rank_strip(const CentrePanel& panel, const ItemRun& run, size_t width) {
    const size_t tile_bytes = width * kTileItems;
    for (size_t row = 0; row < panel.n; row += kRankRows) {
        const int8_t* codes[kRankRows];
        __m512i sums[kRankRows][Tiles];
        for (size_t r = 0; r < kRankRows; ++r) {
            codes[r] = panel.codes + panel.slots[row + r] * width;
            for (size_t t = 0; t < Tiles; ++t) sums[r][t] = _mm512_set1_epi32(panel.starts[panel.slots[row + r]]);
        }
        const uint8_t* items = run.codes;
        for (size_t i = 0; i < width; i += kGroup, items += kTileItems * kGroup) {
            __m512i lanes[Tiles];
            for (size_t t = 0; t < Tiles; ++t) lanes[t] = _mm512_loadu_si512(items + t * tile_bytes);
            for (size_t r = 0; r < kRankRows; ++r) {
                int32_t four;
                __builtin_memcpy(&four, codes[r] + i, 4);
                const __m512i broadcast = _mm512_set1_epi32(four);
                for (size_t t = 0; t < Tiles; ++t) sums[r][t] = dot4(sums[r][t], lanes[t], broadcast);
            }
        }
        // A copy, because sums whose address is taken would be stored in every step of the loop above.
        __m512i done[kRankRows][Tiles];
        for (size_t r = 0; r < kRankRows; ++r)
            for (size_t t = 0; t < Tiles; ++t) done[r][t] = sums[r][t];
        for (size_t r = 0; r < kRankRows; ++r) take_values<Best>(panel, panel.slots[row + r], run, done[r], Tiles);
    }
}

template <bool Best>
void rank_any(const CentrePanel& panel, const ItemRun& run, size_t width) {
    switch (run.tiles) {
        case 4: return rank_strip<4, Best>(panel, run, width);
        case 3: return rank_strip<3, Best>(panel, run, width);
        case 2: return rank_strip<2, Best>(panel, run, width);
        default: return rank_strip<1, Best>(panel, run, width);
    }
}

void rank(const CentrePanel& panel, const ItemRun& run, size_t width) {
    if (panel.places) rank_any<true>(panel, run, width);
    else rank_any<false>(panel, run, width);
}
