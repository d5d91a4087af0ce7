// Values of rows with centres in 256-bit registers: 16 centres by 3 rows, as in the scan, without thresholds or buffers.
//
// Included after dot4. A row's state stays in the cache: 16 lanes of its best values, and their centres.

template <bool Best>
inline void take_values(const CentrePanel& panel, uint32_t slot, const ItemRun& run, size_t tile, const __m256i* sums) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    float* values = panel.values + slot * panel.stride;
    uint32_t* places = Best ? panel.places + slot * kTileItems : nullptr;
    for (size_t h = 0; h < kTileItems; h += 8) {
        const size_t at = tile * kTileItems + h;
        __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[h / 8]), _mm256_loadu_ps(run.scales + at));
        if (run.offsets)
            value = _mm256_add_ps(value, _mm256_mul_ps(_mm256_loadu_ps(run.offsets + at),
                                                       _mm256_set1_ps(panel.weights[slot])));
        const uint32_t first = run.first + static_cast<uint32_t>(at);
        if (!Best) {
            _mm256_storeu_ps(values + first, value);
            continue;
        }
        const __m256 best = _mm256_loadu_ps(values + h);
        const __m256 above = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
        __m256i* held = reinterpret_cast<__m256i*>(places + h);
        const __m256i place = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(first)));
        _mm256_storeu_ps(values + h, _mm256_blendv_ps(best, value, above));
        _mm256_storeu_si256(held, _mm256_blendv_epi8(_mm256_loadu_si256(held), place, _mm256_castps_si256(above)));
    }
}

template <bool Best>
void rank_tile(const CentrePanel& panel, const ItemRun& run, size_t tile, size_t width) {
    constexpr size_t kRows = 3;
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t row = 0; row < panel.n; row += kRows) {
        const int8_t* codes[kRows];
        __m256i sums[kRows][2];
        for (size_t r = 0; r < kRows; ++r) {
            const uint32_t slot = panel.slots[row + r];
            codes[r] = panel.codes + slot * width;
            sums[r][0] = sums[r][1] = _mm256_set1_epi32(panel.starts[slot]);
        }
        const uint8_t* items = run.codes + tile * width * kTileItems;
        for (size_t i = 0; i < width; i += kGroup, items += kTileItems * kGroup) {
            const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items));
            const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items + 32));
            for (size_t r = 0; r < kRows; ++r) {
                int32_t four;
                __builtin_memcpy(&four, codes[r] + i, 4);
                const __m256i broadcast = _mm256_set1_epi32(four);
                sums[r][0] = dot4(sums[r][0], low, broadcast, ones);
                sums[r][1] = dot4(sums[r][1], high, broadcast, ones);
            }
        }
        // A copy, because sums whose address is taken would be stored in every step of the loop above.
        __m256i done[kRows][2];
        for (size_t r = 0; r < kRows; ++r) {
            done[r][0] = sums[r][0];
            done[r][1] = sums[r][1];
        }
        for (size_t r = 0; r < kRows; ++r) take_values<Best>(panel, panel.slots[row + r], run, tile, done[r]);
    }
}

void rank(const CentrePanel& panel, const ItemRun& run, size_t width) {
    for (size_t tile = 0; tile < run.tiles; ++tile) {
        if (panel.places) rank_tile<true>(panel, run, tile, width);
        else rank_tile<false>(panel, run, tile, width);
    }
}
