// Kernels in plain C++, for every processor; the compiler maps the 16 lanes to the processor's vectors.
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace nearcast {
namespace {
#include "body_score.h"
#include "body_quantise.h"
#include "body_select.h"
#include "body_rule.h"

constexpr size_t kQueryGroup = 1;

void dot_tile(const int8_t* query, const uint8_t* items, size_t width, int32_t* sums) {
    for (size_t i = 0; i < width; i += kGroup, items += kTileItems * kGroup)
        for (size_t lane = 0; lane < kTileItems; ++lane) {
            const uint8_t* four = items + lane * kGroup;
            sums[lane] += query[i] * four[0] + query[i + 1] * four[1] + query[i + 2] * four[2] + query[i + 3] * four[3];
        }
}

void compare(uint32_t row, const QueryPanel& panel, const ItemRun& run, size_t tile, const int32_t* sums,
             Survivors& out) {
    const uint32_t slot = panel.slots[row];
    const uint32_t before = out.counts[slot];
    uint32_t count = before;
    const uint64_t allowed = panel.allowed ? panel.allowed[row] >> (run.shift + tile * kTileItems) : ~uint64_t(0);
    if (!(allowed & 0xFFFFu)) return;
    for (size_t lane = 0; lane < kTileItems; ++lane) {
        const size_t item = tile * kTileItems + lane;
        float value = static_cast<float>(sums[lane]) * run.scales[item];
        if (panel.offset_weights) value += run.offsets[item] * panel.offset_weights[slot];
        out.values[slot * out.stride + count] = value;
        out.items[slot * out.stride + count] = run.first + static_cast<uint32_t>(item);
        count += value >= panel.thresholds[row] && (allowed >> lane & 1);
    }
    out.counts[slot] = count;
    if (before <= out.limit && count > out.limit) out.full[out.n_full++] = row;
}

void scan(const QueryPanel& panel, const ItemRun& run, size_t width, Survivors& out) {
    for (size_t tile = 0; tile < run.tiles; ++tile)
        for (size_t row = 0; row < panel.n; ++row) {
            int32_t sums[kTileItems];
            for (size_t lane = 0; lane < kTileItems; ++lane) sums[lane] = panel.starts[panel.slots[row]];
            dot_tile(panel.codes + panel.slots[row] * width, run.codes + tile * width * kTileItems, width, sums);
            compare(static_cast<uint32_t>(row), panel, run, tile, sums, out);
        }
}

void rank(const CentrePanel& panel, const ItemRun& run, size_t width) {
    for (size_t tile = 0; tile < run.tiles; ++tile)
        for (size_t row = 0; row < panel.n; ++row) {
            const size_t slot = panel.slots[row];
            int32_t sums[kTileItems];
            for (size_t lane = 0; lane < kTileItems; ++lane) sums[lane] = panel.starts[slot];
            dot_tile(panel.codes + slot * width, run.codes + tile * width * kTileItems, width, sums);
            for (size_t lane = 0; lane < kTileItems; ++lane) {
                const size_t centre = tile * kTileItems + lane;
                float value = static_cast<float>(sums[lane]) * run.scales[centre];
                if (run.offsets) value += run.offsets[centre] * panel.weights[slot];
                const uint32_t place = run.first + static_cast<uint32_t>(centre);
                if (!panel.places) {
                    panel.values[slot * panel.stride + place] = value;
                } else if (value > panel.values[slot * panel.stride + lane]) {
                    panel.values[slot * panel.stride + lane] = value;
                    panel.places[slot * kTileItems + lane] = place;
                }
            }
        }
}
}  // namespace

KernelTable portable_kernels() {
    return {"portable", 127, kQueryGroup, false, scan, coarsen, rank, nullptr, nullptr, quantise, widen, rescore, norm,
            kth_largest, keep_above, interval_masks, overlap_masks};
}
}  // namespace nearcast
