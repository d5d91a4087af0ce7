// The scan of 32 items by 32 queries in four sum tiles; the TILE_ operations come from the including file.
//
// They are macros because gcc's intrinsics paste the tile's number into assembly text.
//
// The products are those of queries as signed bytes (16 rows of 64) with items as unsigned bytes, whose packed tiles
// already are what the instruction wants: row r holds dimensions 4r..4r+3 of 16 items. While the tile unit multiplies a
// block, the vector unit compares the block before it, out of a small buffer that stays in the first-level cache.

constexpr size_t kTileQueries = 16;
constexpr size_t kTileBytes = 64;
constexpr size_t kAmxGroup = 2 * kTileQueries;

struct PendingBlock {                    // sums that are not compared yet
    alignas(64) int32_t sums[4][kTileQueries * kTileItems];
    size_t row;
    ItemRun run;
    bool waiting;
};

template <bool Offsets>
void compare_block(const QueryPanel& panel, PendingBlock& block, Survivors& out) {
    if (!block.waiting) return;
    block.waiting = false;
    for (size_t q = 0; q < kAmxGroup; ++q) {
        const size_t row = block.row + q;
        const int32_t* low = block.sums[2 * (q / kTileQueries)] + (q % kTileQueries) * kTileItems;
        const __m512i start = _mm512_set1_epi32(panel.starts[panel.slots[row]]);
        __m512i sums[2];
        sums[0] = _mm512_add_epi32(_mm512_load_si512(low), start);
        if (block.run.tiles == 1) {
            compare<1, Offsets>(uint32_t(row), panel, block.run, sums, out);
            continue;
        }
        sums[1] = _mm512_add_epi32(_mm512_load_si512(low + kTileQueries * kTileItems), start);
        compare<2, Offsets>(uint32_t(row), panel, block.run, sums, out);
    }
}

inline void multiply_block(const int8_t* queries, const uint8_t* items, size_t second_tile, size_t width) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    const size_t step = width < kTileBytes ? width : kTileBytes;
    for (size_t i = 0; i < width; i += step) {
        TILE_LOAD(6, items + i * kTileItems, kTileBytes);
        TILE_LOAD(7, items + second_tile + i * kTileItems, kTileBytes);
        TILE_LOAD(4, queries + i, width);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, queries + kTileQueries * width + i, width);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
}

template <bool Offsets>
void scan_pairs(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    PendingBlock blocks[2];
    blocks[0].waiting = blocks[1].waiting = false;
    size_t turn = 0;
    for (size_t tile = 0; tile < run.tiles; tile += 2) {
        const size_t tiles = run.tiles - tile < 2 ? 1 : 2;
        const size_t item = tile * kTileItems;
        const ItemRun pair{run.codes + item * width, run.scales + item, Offsets ? run.offsets + item : nullptr,
                           run.first + static_cast<uint32_t>(item), tiles, run.shift + item};
        for (size_t row = 0; row < panel.n; row += kAmxGroup) {
            if (panel.allowed && !any_allowed(panel.allowed + row, kAmxGroup, pair)) continue;
            PendingBlock& block = blocks[turn];
            multiply_block(panel.codes + row * width, pair.codes, tiles == 2 ? kTileItems * width : 0, width);
            compare_block<Offsets>(panel, blocks[turn ^ 1], out);
            TILE_STORE(0, block.sums[0]);
            TILE_STORE(1, block.sums[1]);
            TILE_STORE(2, block.sums[2]);
            TILE_STORE(3, block.sums[3]);
            block.row = row;
            block.run = pair;
            block.waiting = true;
            turn ^= 1;
        }
    }
    compare_block<Offsets>(panel, blocks[turn ^ 1], out);
}

void scan_tiles(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    if (panel.offset_weights) scan_pairs<true>(panel, run, width, out);
    else scan_pairs<false>(panel, run, width, out);
}

// Tiles 0-3 hold sums, 4-5 queries, 6-7 items.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

TileShapes tile_shapes(size_t width) {
    const uint16_t bytes = static_cast<uint16_t>(width < kTileBytes ? width : kTileBytes);
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) {
        shapes.rows[t] = static_cast<uint8_t>(t < 6 ? kTileQueries : bytes / kGroup);
        shapes.row_bytes[t] = t == 4 || t == 5 ? bytes : static_cast<uint16_t>(kTileBytes);
    }
    return shapes;
}
