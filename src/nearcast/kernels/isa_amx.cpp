// Kernels for AMX with 8-bit tiles; everything else is that of AVX-512 with VNNI.
#include <immintrin.h>

#include "ceilings.h"
#include "kernels.h"

namespace nearcast {
namespace {
#include "body_score.h"
#include "body_quantise.h"
#include "body_select.h"
#include "body_rule512.h"

inline __m512i dot4(__m512i sum, __m512i items, __m512i query) { return _mm512_dpbusd_epi32(sum, items, query); }

#include "body_scan_simd512.h"
#include "body_rank512.h"

#define TILE_LOAD(tile, rows, stride) _tile_loadd(tile, rows, stride)
#define TILE_STORE(tile, rows) _tile_stored(tile, rows, 64)
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_DOT(sums, queries, items) _tile_dpbsud(sums, queries, items)

#include "body_scan_amx.h"

void begin(size_t width) {
    const TileShapes shapes = tile_shapes(width);
    _tile_loadconfig(&shapes);
}
void end() { _tile_release(); }

// ---- ceilings ----

template <Loop What>
int32_t ceiling_strip(const int8_t* queries, const uint8_t* items, PendingBlock* blocks, const QueryPanel& panel,
                      const ItemRun& run, Survivors& out) {
    constexpr size_t kWidth = 128;
    for (size_t pair = 0; pair < 2; ++pair)
        for (size_t row = 0; row < 96; row += kAmxGroup) {
            if (What == Loop::multiply) {
                for (size_t i = 0; i < kWidth; i += kTileBytes) {
                    TILE_DOT(0, 4, 6);
                    TILE_DOT(1, 4, 7);
                    TILE_DOT(2, 5, 6);
                    TILE_DOT(3, 5, 7);
                }
                continue;
            }
            multiply_block(queries + row * kWidth, items + pair * 32 * kWidth, kTileItems * kWidth, kWidth);
            if (What == Loop::load) continue;
            if (What == Loop::compare) compare_block<false>(panel, blocks[1], out);
            TILE_STORE(0, blocks[0].sums[0]);
            TILE_STORE(1, blocks[0].sums[1]);
            TILE_STORE(2, blocks[0].sums[2]);
            TILE_STORE(3, blocks[0].sums[3]);
            blocks[1].row = row;
            blocks[1].run = run;
            blocks[1].waiting = true;
        }
    return 0;
}

double ceiling(Loop loop, size_t rounds) {
    static thread_local int8_t queries[96 * 128];
    static thread_local uint8_t items[64 * 128];
    static thread_local int32_t starts[96];
    static thread_local uint32_t slots[96], counts[1];
    static thread_local float thresholds[96], scales[32];
    static thread_local PendingBlock blocks[2];
    uint64_t state = 88172645463325252ull;
    auto next = [&] { return (state = state * 6364136223846793005ull + 1442695040888963407ull) >> 40; };
    for (auto& query : queries) query = static_cast<int8_t>(next());
    for (auto& item : items) item = static_cast<uint8_t>(next());
    for (auto& threshold : thresholds) threshold = 3e38f;
    for (auto& scale : scales) scale = 1.0f;
    for (auto& sums : blocks[1].sums)
        for (auto& sum : sums) sum = static_cast<int32_t>(next());
    const QueryPanel panel{queries, starts, nullptr, slots, thresholds, 96};
    const ItemRun run{items, scales, nullptr, 0, 2};
    Survivors out{nullptr, nullptr, counts, 0, 0, nullptr, 0};
    begin(128);
    multiply_block(queries, items, kTileItems * 128, 128);  // so that the tiles hold random data
    for (size_t r = 0; r < rounds; ++r) {
        if (loop == Loop::multiply) ceiling_strip<Loop::multiply>(queries, items, blocks, panel, run, out);
        if (loop == Loop::load) ceiling_strip<Loop::load>(queries, items, blocks, panel, run, out);
        if (loop == Loop::store) ceiling_strip<Loop::store>(queries, items, blocks, panel, run, out);
        if (loop == Loop::compare) ceiling_strip<Loop::compare>(queries, items, blocks, panel, run, out);
    }
    end();
    return static_cast<double>(rounds) * 96 * 64 * 128;
}
}  // namespace

CeilingFunction amx_ceiling() { return ceiling; }

KernelTable amx_kernels() {
    return {"amx", 127, kAmxGroup, true, scan_tiles, coarsen, rank, begin, end, quantise, widen, rescore, norm,
            kth_largest, keep_above, interval_masks, overlap_masks};
}
}  // namespace nearcast
