// The AMX kernels with tile instructions spelled out in plain C++: for tests on machines without AMX, and slow.
#include <immintrin.h>

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

struct Tile {
    size_t rows, row_bytes;
    uint8_t bytes[16][64];
};
thread_local Tile tiles[8];

template <int T> inline void tile_load(const void* rows, size_t stride) {
    for (size_t r = 0; r < tiles[T].rows; ++r)
        __builtin_memcpy(tiles[T].bytes[r], static_cast<const char*>(rows) + r * stride, tiles[T].row_bytes);
}
template <int T> inline void tile_store(int32_t* rows) {
    for (size_t r = 0; r < tiles[T].rows; ++r) __builtin_memcpy(rows + r * 16, tiles[T].bytes[r], tiles[T].row_bytes);
}
template <int Sums, int Queries, int Items> inline void tile_dot() {
    for (size_t m = 0; m < tiles[Sums].rows; ++m)
        for (size_t n = 0; n < tiles[Sums].row_bytes / 4; ++n) {
            int32_t sum;
            __builtin_memcpy(&sum, tiles[Sums].bytes[m] + 4 * n, 4);
            for (size_t k = 0; k < tiles[Queries].row_bytes; ++k)
                sum += static_cast<int8_t>(tiles[Queries].bytes[m][k]) * tiles[Items].bytes[k / 4][4 * n + k % 4];
            __builtin_memcpy(tiles[Sums].bytes[m] + 4 * n, &sum, 4);
        }
}

#define TILE_LOAD(tile, rows, stride) tile_load<tile>(rows, stride)
#define TILE_STORE(tile, rows) tile_store<tile>(rows)
#define TILE_ZERO(tile) __builtin_memset(tiles[tile].bytes, 0, sizeof tiles[tile].bytes)
#define TILE_DOT(sums, queries, items) tile_dot<sums, queries, items>()

#include "body_scan_amx.h"

void begin(size_t width) {
    const TileShapes shapes = tile_shapes(width);
    for (int t = 0; t < 8; ++t) {
        tiles[t].rows = shapes.rows[t];
        tiles[t].row_bytes = shapes.row_bytes[t];
    }
}
void end() {}
}  // namespace

KernelTable amx_emulated_kernels() {
    return {"amx-emulated", 127, kAmxGroup, true, scan_tiles, coarsen, rank, begin, end, quantise, widen, rescore, norm,
            kth_largest, keep_above, interval_masks, overlap_masks};
}
}  // namespace nearcast
