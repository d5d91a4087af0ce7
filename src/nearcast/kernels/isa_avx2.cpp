// Kernels for AVX2 with FMA and F16C: 16 items by 3 queries at a time.
//
// Query codes stay within 63, because 2 * 255 * 63 must fit a signed 16-bit sum. With four queries gcc spills two of the
// eight sums in every step, which costs a third.
#include <immintrin.h>

#include "ceilings.h"
#include "kernels.h"

namespace nearcast {
namespace {
#include "body_score.h"
#include "body_quantise.h"
#include "body_select.h"

constexpr size_t kQueryGroup = 3;

// ---- masks ----

void interval_masks(const int32_t* codes, size_t items, const int32_t* low, const int32_t* high, size_t n,
                    uint64_t* masks) {
    for (size_t row = 0; row < n; ++row) {
        const __m256i from = _mm256_set1_epi32(low[row]), to = _mm256_set1_epi32(high[row]);
        uint64_t mask = 0;
        for (size_t i = 0; i < items; i += 8) {
            const __m256i held = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
            const __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(from, held), _mm256_cmpgt_epi32(held, to));
            mask |= uint64_t(~unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(outside))) & 0xFFu) << i;
        }
        masks[row] = mask;
    }
}

void overlap_masks(const uint64_t* item_words, size_t stride, size_t items, const uint64_t* query_words, size_t words,
                   size_t n, uint64_t* masks) {
    const __m256i zero = _mm256_setzero_si256();
    for (size_t row = 0; row < n; ++row) {
        uint64_t mask = 0;
        for (size_t w = 0; w < words; ++w) {
            const __m256i asked = _mm256_set1_epi64x(static_cast<long long>(query_words[row * words + w]));
            for (size_t i = 0; i < items; i += 4) {
                const __m256i held = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(item_words + w * stride + i));
                const __m256i none = _mm256_cmpeq_epi64(_mm256_and_si256(held, asked), zero);
                mask |= uint64_t(~unsigned(_mm256_movemask_pd(_mm256_castsi256_pd(none))) & 0xFu) << i;
            }
        }
        masks[row] = mask;
    }
}

// ---- scan ----

inline __m256i dot4(__m256i sum, __m256i items, __m256i query, __m256i ones) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(items, query), ones));
}

// Survivors are rare, so they are written one by one.
void write_survivors(uint32_t row, const QueryPanel& panel, uint32_t first, unsigned mask, const float* values,
                     Survivors& out) {
    const uint32_t slot = panel.slots[row];
    const uint32_t before = out.counts[slot];
    size_t at = slot * out.stride + before;
    for (; mask; mask &= mask - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(mask));
        out.values[at] = values[lane];
        out.items[at++] = first + lane;
    }
    const uint32_t count = static_cast<uint32_t>(at - slot * out.stride);
    out.counts[slot] = count;
    if (before <= out.limit && count > out.limit) out.full[out.n_full++] = row;
}

template <bool Offsets>
inline void compare(uint32_t row, const QueryPanel& panel, const ItemRun& run, size_t tile, const __m256i* sums,
                    Survivors& out) {
    const __m256 threshold = _mm256_set1_ps(panel.thresholds[row]);
    const size_t at = tile * kTileItems;
    __m256 values[2];
    unsigned mask = 0;
    for (size_t h = 0; h < 2; ++h) {
        values[h] = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[h]), _mm256_loadu_ps(run.scales + at + 8 * h));
        if (Offsets)
            values[h] = _mm256_add_ps(values[h], _mm256_mul_ps(_mm256_loadu_ps(run.offsets + at + 8 * h),
                                                               _mm256_set1_ps(panel.offset_weights[panel.slots[row]])));
        mask |= static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(values[h], threshold, _CMP_GE_OQ))) << (8 * h);
    }
    if (panel.allowed) mask &= static_cast<unsigned>(panel.allowed[row] >> (run.shift + at)) & 0xFFFFu;
    if (__builtin_expect(mask == 0, 1)) return;
    float written[kTileItems];
    _mm256_storeu_ps(written, values[0]);
    _mm256_storeu_ps(written + 8, values[1]);
    write_survivors(row, panel, run.first + static_cast<uint32_t>(at), mask, written, out);
}

bool any_allowed(const uint64_t* allowed, size_t shift) {
    uint64_t any = 0;
    for (size_t q = 0; q < kQueryGroup; ++q) any |= allowed[q];
    return (any >> shift) & 0xFFFFu;
}

template <bool Offsets>
void scan_tile(const QueryPanel& panel, const ItemRun& run, size_t tile, size_t width, Survivors& out) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t row = 0; row < panel.n; row += kQueryGroup) {
        if (panel.allowed && !any_allowed(panel.allowed + row, run.shift + tile * kTileItems)) continue;
        __m256i sums[kQueryGroup][2];
        const int8_t* queries[kQueryGroup];
        for (size_t q = 0; q < kQueryGroup; ++q) {
            const size_t slot = panel.slots[row + q];
            sums[q][0] = sums[q][1] = _mm256_set1_epi32(panel.starts[slot]);
            queries[q] = panel.codes + slot * width;
        }
        const uint8_t* items = run.codes + tile * width * kTileItems;
        for (size_t i = 0; i < width; i += kGroup, items += kTileItems * kGroup) {
            const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items));
            const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items + 32));
            for (size_t q = 0; q < kQueryGroup; ++q) {
                int32_t four;
                __builtin_memcpy(&four, queries[q] + i, 4);
                const __m256i broadcast = _mm256_set1_epi32(four);
                sums[q][0] = dot4(sums[q][0], low, broadcast, ones);
                sums[q][1] = dot4(sums[q][1], high, broadcast, ones);
            }
        }
        // A copy, because sums whose address is taken would be stored in every step of the loop above.
        __m256i done[kQueryGroup][2];
        for (size_t q = 0; q < kQueryGroup; ++q) {
            done[q][0] = sums[q][0];
            done[q][1] = sums[q][1];
        }
        for (size_t q = 0; q < kQueryGroup; ++q) compare<Offsets>(uint32_t(row + q), panel, run, tile, done[q], out);
    }
}

void scan(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    for (size_t tile = 0; tile < run.tiles; ++tile) {
        if (panel.offset_weights) scan_tile<true>(panel, run, tile, width, out);
        else scan_tile<false>(panel, run, tile, width, out);
    }
}

#include "body_rank256.h"

// ---- ceilings ----

using Vector = __m256i;
constexpr size_t kLanes = 8, kTall = 4, kWide = 2;
inline Vector load(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }
inline Vector broadcast(int value) { return _mm256_set1_epi32(value); }
inline Vector dot(Vector sum, Vector items, Vector query) { return dot4(sum, items, query, _mm256_set1_epi16(1)); }
inline void to_memory(int32_t* to, Vector sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums); }
inline int32_t any_above(Vector sums, Vector limit) {
    const __m256i above = _mm256_cmpgt_epi32(sums, limit);
    return !_mm256_testz_si256(above, above);
}
#include "body_ceiling.h"
}  // namespace

CeilingFunction avx2_ceiling() { return ceiling; }

KernelTable avx2_kernels() {
    return {"avx2", 63, kQueryGroup, false, scan, coarsen, rank, nullptr, nullptr, quantise, widen, rescore, norm,
            kth_largest, keep_above, interval_masks, overlap_masks};
}
}  // namespace nearcast
