// What every native kernel agrees on: array layouts, the table of one instruction set's kernels.
//
// Knows no files, no ids, no specs; a position is a row number. The kernels of one instruction set are compiled in a
// file of their own with that set's flags, so nothing here may define code that the linker could share between them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearcast {

enum class ElementType : int { float16 = 0, float32 = 1, int8 = 2, uint8 = 3 };
enum class Metric : int { inner_product = 0, cosine = 1, l2 = 2 };

constexpr size_t kTileItems = 16;      // items side by side in a tile: the lanes of a 512-bit register
constexpr size_t kGroup = 4;           // dimensions that one 8-bit dot product instruction adds up
constexpr size_t kStripTiles = 4;      // tiles that a scan takes at once; 64 items stay in the first-level cache
constexpr size_t kStripItems = kTileItems * kStripTiles;
constexpr size_t kRankRows = 6;        // rows that are compared with centres at once, on every instruction set
constexpr size_t kScoreLanes = 16;     // lanes of the full-precision score, part of its definition
constexpr double kLeastScale = 0x1p-100;  // of a vector's codes; smaller scales are rounded to zero
constexpr uint32_t kNoItem = 0xFFFFFFFFu;

struct Vectors {                       // n rows of d elements, row-major
    const void* data;
    ElementType type;
    size_t n;
    size_t d;
};

// The change of basis before rounding to 8 bits. Component i is multiplied by sign[i], goes to place[i], and then each
// power-of-two block of the width is rotated by a Hadamard matrix. It is orthogonal, so inner products stay equal; it
// spreads a few large components over all of them, which halves the rounding error on real embeddings.
struct Rotation {
    const double* sign;                // (d,) +1 or -1
    const uint32_t* place;             // (d,) below width, all different
    const double* centre;              // (d,) subtracted first, or null
    size_t width;                      // d padded
    bool normalise;                    // divide by the length (cosine)
};

struct Codes {                         // n rounded vectors
    int8_t* codes;                     // (n, width)
    double* scales;                    // (n,) vector is about scale * codes
    double* residuals;                 // (n,) length of vector - scale * codes
    double* norms;                     // (n,) length of the vector, before rounding
};

struct QueryPanel {                    // the queries that scan a run of items, padded to a multiple of query_group
    const int8_t* codes;               // (slots, width) row-major; or a copy (n, width) in the order of the rows, for
                                       // an instruction set with copies_panel
    const int32_t* starts;             // (slots,) where the sum begins: -128 times the sum of the codes, as items are offset
    const float* offset_weights;       // (slots,) weight of the items' offsets; null where items have none
    const uint32_t* slots;             // (n,) the query of each row, and its buffer
    const float* thresholds;           // (n,) the least value that is written down; NaN writes nothing
    size_t n;
    const uint64_t* allowed = nullptr; // (n,) bits of the strip's items that each query may get; null: all of them
};

struct ItemRun {                       // at most kStripTiles tiles
    const uint8_t* codes;              // (tiles, width / 4, 16, 4): code + 128
    const float* scales;               // (tiles * 16,) NaN where there is no item
    const float* offsets;              // (tiles * 16,) or null
    uint32_t first;                    // number of the first item
    size_t tiles;
    size_t shift = 0;                  // bit of the first item in the panel's masks
    size_t ahead = 0;                  // bytes of codes behind the run that will be wanted next
};

struct Survivors {                     // one buffer per query
    float* values;
    uint32_t* items;
    uint32_t* counts;
    size_t stride;                     // room of one buffer: limit + kStripItems + kTileItems
    uint32_t limit;                    // more than that and the buffer must be cut before the next strip
    uint32_t* full;                    // rows of the panel whose buffers passed the limit
    size_t n_full;
};

struct CentrePanel {                   // rows that are compared with centres
    const int8_t* codes;               // (any, width), on 63 levels
    const int32_t* starts;             // (any,) as of a QueryPanel
    const float* weights;              // (any,) weight of the centres' offsets
    const uint32_t* slots;             // (n,) the rows; n is a multiple of kRankRows
    size_t n;
    float* values;                     // (any, stride) all values, or the best value in each of 16 lanes
    uint32_t* places;                  // (any, 16) numbers of those centres, the first of equal ones; null: all values
    size_t stride;
};

struct RescoreJob {                    // full-precision scores of one query with some items
    Vectors items;
    Metric metric;
    const double* query;               // (d padded to kScoreLanes,)
    double query_norm;                 // used by cosine only
    const double* item_norms;          // used by cosine only
};

using ScanFunction = void (*)(const QueryPanel&, const ItemRun&, size_t width, Survivors&);

struct KernelTable {
    const char* name;
    int query_levels;                  // largest query code: 63 where two products must fit 16 bits, else 127
    size_t query_group;
    bool copies_panel;                 // the scan takes the queries of a panel row by row in one piece
    ScanFunction scan;
    int32_t (*coarsen)(const int8_t* codes, size_t width, int8_t* coarse);  // 127 levels to 63; returns the sum
    void (*rank)(const CentrePanel&, const ItemRun&, size_t width);         // the items of the run are centres
    void (*thread_begin)(size_t width);   // null, or the setup of a thread before it scans (tile configuration)
    void (*thread_end)();
    void (*quantise)(const Vectors&, size_t begin, size_t end, const Rotation&, int levels, double* scratch, Codes&);
    void (*widen)(const Vectors&, size_t row, double* out);
    void (*rescore)(const RescoreJob&, const uint32_t* positions, size_t n, float* scores);
    double (*norm)(const Vectors&, size_t row);
    float (*kth_largest)(const float* values, size_t n, size_t k, int32_t* scratch);
    // Moves the pairs whose value is at least `bar` to the front, in their order. Returns how many they are.
    uint32_t (*keep_above)(float* values, uint32_t* items, uint32_t n, float bar);
    // Bit i of masks[row]: whether low[row] <= codes[i] <= high[row]. `items` is a multiple of 16, 64 at most.
    void (*interval_masks)(const int32_t* codes, size_t items, const int32_t* low, const int32_t* high, size_t n,
                           uint64_t* masks);
    // Bit i of masks[row]: whether a word of the item shares a bit with the query's; item_words is (words, stride).
    void (*overlap_masks)(const uint64_t* item_words, size_t stride, size_t items, const uint64_t* query_words,
                          size_t words, size_t n, uint64_t* masks);
};

KernelTable portable_kernels();
KernelTable avx2_kernels();
KernelTable avx512_kernels();
KernelTable avx512vnni_kernels();
KernelTable amx_kernels();
KernelTable amx_emulated_kernels();

}  // namespace nearcast
