#include "assign.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace nearcast {
namespace {

constexpr size_t kRowsPerJob = 2048;
constexpr size_t kRowsAtOnce = 96;   // whose values with all groups stay in the cache
constexpr float kLowest = -std::numeric_limits<float>::infinity();

float weight_of(double scale) { return static_cast<float>(1.0 / (scale > 0 ? scale : 1.0)); }

// A kernel takes whole groups of rows; the last row again changes nothing.
void pad(std::vector<uint32_t>& slots) {
    while (slots.size() % kRankRows) slots.push_back(slots.back());
}

std::vector<uint32_t> first_slots(size_t n) {
    std::vector<uint32_t> slots(n);
    for (size_t slot = 0; slot < n; ++slot) slots[slot] = static_cast<uint32_t>(slot);
    pad(slots);
    return slots;
}

void scan_block(const KernelTable& kernels, const CentrePanel& panel, const PackedItems& centres, size_t block) {
    if (panel.n == 0) return;
    const size_t width = centres.width, last = centres.block_tiles[block + 1];
    for (size_t tile = centres.block_tiles[block]; tile < last; tile += kStripTiles) {
        const ItemRun run{centres.codes + tile * kTileItems * width, centres.scales + tile * kTileItems,
                          centres.offsets ? centres.offsets + tile * kTileItems : nullptr,
                          static_cast<uint32_t>(tile * kTileItems), std::min(kStripTiles, last - tile)};
        kernels.rank(panel, run, width);
    }
}

class Assigner {
public:
    Assigner(const KernelTable& kernels, const AssignJob& job)
        : kernels_(kernels), job_(job), width_(job.centres.width), codes_(kRowsPerJob * width_), starts_(kRowsPerJob),
          weights_(kRowsPerJob), values_(kRowsPerJob * kTileItems), places_(kRowsPerJob * kTileItems) {
        if (job.tops) {
            top_stride_ = job.tops->block_tiles[1] * kTileItems;
            top_values_.resize(kRowsAtOnce * top_stride_);
            scratch_.resize(top_stride_);
        }
    }

    void run(size_t number) {
        const size_t begin = number * kRowsPerJob;
        n_ = std::min(kRowsPerJob, job_.n - begin);
        load(begin);
        if (job_.tops) choose_groups();
        else slots_ = first_slots(n_);
        std::fill_n(values_.begin(), n_ * kTileItems, kLowest);
        std::fill_n(places_.begin(), n_ * kTileItems, kNoItem);
        for (size_t group = 0; group < job_.centres.blocks; ++group) probe(group);
        for (size_t slot = 0; slot < n_; ++slot) job_.nearest[begin + slot] = best_of(slot);
    }

private:
    void load(size_t begin) {
        for (size_t slot = 0; slot < n_; ++slot) {
            const size_t row = job_.rows[begin + slot];
            const int8_t* from = job_.codes + row * width_;
            int8_t* to = codes_.data() + slot * width_;
            if (job_.levels == 127) {
                starts_[slot] = -128 * kernels_.coarsen(from, width_, to);
                weights_[slot] = weight_of(job_.scales[row] * (127.0 / 63.0));
                continue;
            }
            std::copy_n(from, width_, to);
            starts_[slot] = -128 * std::accumulate(to, to + width_, 0);
            weights_[slot] = weight_of(job_.scales[row]);
        }
    }

    // Lists the rows of each group: every row probes its best groups.
    void choose_groups() {
        const size_t groups = job_.centres.blocks;
        const size_t probes = std::min(job_.probes, groups);
        chosen_.clear();
        chosen_by_.clear();
        starts_of_.assign(groups + 1, 0);
        for (size_t first = 0; first < n_; first += kRowsAtOnce) {
            const size_t n = std::min(kRowsAtOnce, n_ - first);
            slots_ = first_slots(n);
            const CentrePanel panel{codes_.data() + first * width_, starts_.data() + first, weights_.data() + first,
                                    slots_.data(), slots_.size(), top_values_.data(), nullptr, top_stride_};
            scan_block(kernels_, panel, *job_.tops, 0);
            for (size_t row = 0; row < n; ++row) {
                const float* values = top_values_.data() + row * top_stride_;
                const float bar = kernels_.kth_largest(values, groups, probes, scratch_.data());
                size_t equal = probes;  // groups at the bar that are probed: the first of them
                for (size_t group = 0; group < groups; ++group) equal -= values[group] > bar;
                for (size_t group = 0; group < groups; ++group) {
                    const bool tied = values[group] == bar && equal > 0;
                    if (!(values[group] > bar) && !tied) continue;
                    equal -= tied;
                    chosen_.push_back(static_cast<uint32_t>(group));
                    chosen_by_.push_back(static_cast<uint32_t>(first + row));
                    ++starts_of_[group + 1];
                }
            }
        }
        for (size_t group = 0; group < groups; ++group) starts_of_[group + 1] += starts_of_[group];
        by_group_.resize(chosen_.size());
        std::vector<uint32_t> next(starts_of_.begin(), starts_of_.end() - 1);
        for (size_t i = 0; i < chosen_.size(); ++i) by_group_[next[chosen_[i]]++] = chosen_by_[i];
    }

    void probe(size_t group) {
        if (job_.tops) {
            slots_.assign(by_group_.begin() + starts_of_[group], by_group_.begin() + starts_of_[group + 1]);
            pad(slots_);
        }
        const CentrePanel panel{codes_.data(), starts_.data(), weights_.data(), slots_.data(), slots_.size(),
                                values_.data(), places_.data(), kTileItems};
        scan_block(kernels_, panel, job_.centres, group);
    }

    // The best lane of a row, the first in the centres' order among equal ones.
    uint32_t best_of(size_t slot) {
        float* values = values_.data() + slot * kTileItems;
        uint32_t* places = places_.data() + slot * kTileItems;
        for (size_t half = kTileItems / 2; half > 0; half /= 2)
            for (size_t lane = 0; lane < half; ++lane) {
                const float value = values[lane + half];
                const uint32_t place = places[lane + half];
                const bool better = (value > values[lane]) | ((value == values[lane]) & (place < places[lane]));
                values[lane] = better ? value : values[lane];
                places[lane] = better ? place : places[lane];
            }
        return places[0] == kNoItem ? kNoItem : job_.centres.order[places[0]];
    }

    const KernelTable kernels_;
    const AssignJob& job_;
    const size_t width_;
    size_t n_ = 0, top_stride_ = 0;
    std::vector<int8_t> codes_;
    std::vector<int32_t> starts_, scratch_;
    std::vector<float> weights_, values_, top_values_;
    std::vector<uint32_t> places_, slots_, chosen_, chosen_by_, starts_of_, by_group_;
};

}  // namespace

void assign(const KernelTable& kernels, const AssignJob& job) {
    auto make_worker = [&] {
        auto assigner = std::make_shared<Assigner>(kernels, job);
        return std::function<void(size_t)>([assigner](size_t number) { assigner->run(number); });
    };
    run_jobs((job.n + kRowsPerJob - 1) / kRowsPerJob, job.threads, make_worker, nullptr);
}

void centre_values(const KernelTable& kernels, const RoundedQueries& rows, size_t n, const PackedItems& centres,
                   size_t threads, float* values) {
    const size_t stride = centres.block_tiles[centres.blocks] * kTileItems;
    auto make_worker = [&] {
        auto weights = std::make_shared<std::vector<float>>(kRowsAtOnce);
        return std::function<void(size_t)>([&, weights](size_t number) {
            const size_t begin = number * kRowsAtOnce, held = std::min(kRowsAtOnce, n - begin);
            for (size_t row = 0; row < held; ++row) (*weights)[row] = weight_of(rows.scales[begin + row]);
            const std::vector<uint32_t> slots = first_slots(held);
            const CentrePanel panel{rows.codes + begin * centres.width, rows.starts + begin, weights->data(),
                                    slots.data(), slots.size(), values + begin * stride, nullptr, stride};
            for (size_t block = 0; block < centres.blocks; ++block) scan_block(kernels, panel, centres, block);
        });
    };
    run_jobs((n + kRowsAtOnce - 1) / kRowsAtOnce, threads, make_worker, nullptr);
}

}  // namespace nearcast
