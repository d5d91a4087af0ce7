// The scan of 64 items by 6 queries in 512-bit registers; dot4(sum, items, query) comes from the including file.
//
// 24 sums, 4 item registers and the broadcast query use 29 of 32 registers. Per step of 4 dimensions: 4 loads, 6
// broadcasts, 24 multiplications, so that the multiplier is what limits it.

constexpr size_t kQueryGroup = 6;
constexpr size_t kLinesAhead = 4;

// Writes the lanes of `mask` behind what the buffer holds. Compressing in a register and storing it whole is used
// because the compressing store to memory is slow microcode on Zen 4; buffers have a tile of room to spare.
inline uint32_t append(Survivors& out, uint32_t slot, uint32_t count, __mmask16 mask, __m512 values, uint32_t first) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const size_t at = slot * out.stride + count;
    _mm512_storeu_ps(out.values + at, _mm512_maskz_compress_ps(mask, values));
    __m512i items = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
    _mm512_storeu_si512(out.items + at, _mm512_maskz_compress_epi32(mask, items));
    return count + static_cast<uint32_t>(__builtin_popcount(mask));
}

template <size_t Tiles>
void write_survivors(uint32_t row, const QueryPanel& panel, const ItemRun& run, const __mmask16* masks,
                     const __m512* values, Survivors& out) {
    const uint32_t slot = panel.slots[row];
    const uint32_t before = out.counts[slot];
    uint32_t count = before;
    for (size_t t = 0; t < Tiles; ++t)
        if (masks[t]) count = append(out, slot, count, masks[t], values[t], run.first + uint32_t(t * kTileItems));
    out.counts[slot] = count;
    if (before <= out.limit && count > out.limit) out.full[out.n_full++] = row;
}

template <size_t Tiles, bool Offsets>
inline void compare(uint32_t row, const QueryPanel& panel, const ItemRun& run, const __m512i* sums, Survivors& out) {
    const __m512 threshold = _mm512_set1_ps(panel.thresholds[row]);
    __m512 values[Tiles];
    __mmask16 masks[Tiles];
    unsigned any = 0;
    for (size_t t = 0; t < Tiles; ++t) {
        values[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t]), _mm512_loadu_ps(run.scales + t * kTileItems));
        if (Offsets)
            values[t] = _mm512_add_ps(values[t], _mm512_mul_ps(_mm512_loadu_ps(run.offsets + t * kTileItems),
                                                               _mm512_set1_ps(panel.offset_weights[panel.slots[row]])));
        masks[t] = _mm512_cmp_ps_mask(values[t], threshold, _CMP_GE_OQ);
        any |= masks[t];
    }
    if (__builtin_expect(any == 0, 1)) return;
    if (panel.allowed) {
        const uint64_t allowed = panel.allowed[row] >> run.shift;
        any = 0;
        for (size_t t = 0; t < Tiles; ++t) {
            masks[t] &= static_cast<__mmask16>(allowed >> (t * kTileItems));
            any |= masks[t];
        }
        if (any == 0) return;
    }
    write_survivors<Tiles>(row, panel, run, masks, values, out);
}

// Whether one of these queries may get one of the run's items.
inline bool any_allowed(const uint64_t* allowed, size_t queries, const ItemRun& run) {
    uint64_t any = 0;
    for (size_t q = 0; q < queries; ++q) any |= allowed[q];
    return (any >> run.shift) << (64 - run.tiles * kTileItems);
}

template <size_t Tiles, bool Offsets>
void scan_strip(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    const size_t tile_bytes = width * kTileItems;
    size_t asked = 0;  // bytes of the next run, asked for early: cells lie anywhere in memory
    for (size_t row = 0; row < panel.n; row += kQueryGroup) {
        for (size_t line = 0; line < kLinesAhead && asked < run.ahead; ++line, asked += 64)
            __builtin_prefetch(run.codes + Tiles * tile_bytes + asked);
        for (size_t q = row + kQueryGroup; q < row + 2 * kQueryGroup && q < panel.n; ++q)  // so are their queries
            for (size_t byte = 0; byte < width; byte += 64) __builtin_prefetch(panel.codes + panel.slots[q] * width + byte);
        if (panel.allowed && !any_allowed(panel.allowed + row, kQueryGroup, run)) continue;
        __m512i sums[kQueryGroup][Tiles];
        const int8_t* queries[kQueryGroup];
        for (size_t q = 0; q < kQueryGroup; ++q) {
            const size_t slot = panel.slots[row + q];
            queries[q] = panel.codes + slot * width;
            for (size_t t = 0; t < Tiles; ++t) sums[q][t] = _mm512_set1_epi32(panel.starts[slot]);
        }
        const uint8_t* items = run.codes;
        for (size_t i = 0; i < width; i += kGroup, items += kTileItems * kGroup) {
            __m512i lanes[Tiles];
            for (size_t t = 0; t < Tiles; ++t) lanes[t] = _mm512_loadu_si512(items + t * tile_bytes);
            for (size_t q = 0; q < kQueryGroup; ++q) {
                int32_t four;
                __builtin_memcpy(&four, queries[q] + i, 4);
                const __m512i broadcast = _mm512_set1_epi32(four);
                for (size_t t = 0; t < Tiles; ++t) sums[q][t] = dot4(sums[q][t], lanes[t], broadcast);
            }
        }
        // A copy, because sums whose address is taken would be stored in every step of the loop above.
        __m512i done[kQueryGroup][Tiles];
        for (size_t q = 0; q < kQueryGroup; ++q)
            for (size_t t = 0; t < Tiles; ++t) done[q][t] = sums[q][t];
        for (size_t q = 0; q < kQueryGroup; ++q) compare<Tiles, Offsets>(uint32_t(row + q), panel, run, done[q], out);
    }
}

template <bool Offsets>
void scan_any(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    switch (run.tiles) {
        case 4: return scan_strip<4, Offsets>(panel, run, width, out);
        case 3: return scan_strip<3, Offsets>(panel, run, width, out);
        case 2: return scan_strip<2, Offsets>(panel, run, width, out);
        default: return scan_strip<1, Offsets>(panel, run, width, out);
    }
}

[[maybe_unused]] void scan(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    if (panel.offset_weights) scan_any<true>(panel, run, width, out);
    else scan_any<false>(panel, run, width, out);
}
