// The driver of the join: buffers, thresholds, the bound, and which queries scan which block of items.
//
// The bound. A query q is rounded to q' = s * (integers), an item x to x'. Both are in the same rotated basis, so
//     q.x - q'.x' = (q - q').x' + q.(x - x')
// and by Cauchy-Schwarz  |q.x - q'.x'| <= |q - q'| |x'| + |q| |x - x'|.  The residual lengths |q - q'|, |x - x'| are
// measured when rounding, not estimated. q'.x' itself is a sum of integers without error; what follows in float32
// (conversion, two products, one sum) errs by less than 4 * 2^-24 of |q'| |x'| + |offset|, the change of basis in float64
// by less than 1e-13 |q| |x|, and the final score is rounded to float32, by 2^-24 of its size. kFloatSlack covers all of
// that ten times over. Let E be the sum of these errors, the largest over a block of items.
//
// A value V (the integer sum, scaled) then satisfies |V - S| <= E for the true score S. If k items have V >= v, the k-th
// best true score is at least L = v - E; so an item with V + E < L cannot be among the k best, nor tie with the last. What
// remains is scored in full precision, and that alone decides. All values are in units of the query's scale.
//
// A pruned join takes a share of the first two terms only. Cauchy-Schwarz is reached where a residual points along the
// other vector. Rounding errors of a rotated vector point anywhere: in w dimensions their products with it have a
// standard deviation of 1 / sqrt(w) of their lengths, so that a few of these bound nearly all of them.

#include "join.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "parallel.h"
#include "select.h"

namespace nearcast {
namespace {

constexpr double kFloatSlack = 4e-6;
constexpr double kLeastNormal = 1.2e-38;  // float32 loses absolute, not relative precision below, or flushes to zero
constexpr double kTinySlack = 4 * kLeastNormal;  // of a conversion, two products and a sum
constexpr double kTinyScore = 2 * kLeastNormal;  // of an offset, and of the score itself
constexpr float kNothing = std::numeric_limits<float>::quiet_NaN();
struct Bound {                          // of one query, in units of its scale
    double norm, residual, offset, constant;  // weights of a block's largest norm and so on, in the error of a value
    double least;                       // bounds the k-th score from below
    double worst;                       // the largest error of a value in the buffer
};

constexpr double kNone = -std::numeric_limits<double>::infinity();

size_t padded(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr size_t kNearestShare = 4;     // of the cells probed first, one in so many is scanned before the others
constexpr size_t kCentreQueries = 96;   // queries that choose their cells at a time; their values stay in the cache

// Values are float32, and may be -infinity where the double that they stand for is not: so are bars, to compare with.
// A conversion errs by 2^-24 of its size, or by less than kLeastNormal below that; there is no call and no branch.
float rounded_down(double value) { return static_cast<float>(value - std::abs(value) * 1.2e-7 - kLeastNormal); }

size_t buffer_limit(size_t k) { return std::max<size_t>(64, 3 * k + 48); }

// Codes come in whole pieces of 16 bytes, and a call per row costs more than the copy.
void copy_codes(const int8_t* from, size_t width, int8_t* to) {
    for (size_t i = 0; i < width; i += 16) std::memcpy(to + i, from + i, 16);
}

struct CellLists {                      // the cells of each query of a job, then the queries of each cell
    std::vector<uint64_t> probed;       // a row, and the place of a cell below it
    std::vector<uint32_t> starts, by_cell;
    std::vector<float> nearest, firsts, floors, bars;
};

// What a worker holds for the queries of one job. Buffers are reused from job to job.
class Worker {
public:
    Worker(const KernelTable& kernels, const JoinJob& job, const Probes* probes, JoinResult& result)
        : kernels_(kernels), job_(job), probes_(probes), result_(result), width_(job.packed.width),
          limit_(buffer_limit(job.k)), stride_(limit_ + kStripItems + kTileItems), caps_(job.caps) {
        const size_t room = padded(std::max(job.queries_per_job, kCentreQueries), kernels.query_group);
        values_.resize(room * stride_);
        items_.resize(room * stride_);
        counts_.resize(room);
        checked_.resize(room);
        best_.resize(room * job.k);
        best_count_.resize(room);
        bounds_.resize(room);
        thresholds_.resize(room);
        weights_.resize(room);
        rows_.reserve(room);
        full_.resize(room);
        if (kernels.copies_panel) codes_.resize(room * width_);
        scratch_.resize(stride_);
        keys_.resize(stride_ + job.k);
        positions_.resize(stride_);
        scores_.resize(stride_);
        query_.resize(padded(job.queries.d, kScoreLanes));
        by_value_.resize(job.caps.empty() ? 0 : stride_);
        if (job.rule) masks_.emplace(kernels_, *job.rule, room);
        if (kernels_.thread_begin) kernels_.thread_begin(width_);
    }
    ~Worker() {
        if (kernels_.thread_end) kernels_.thread_end();
    }
    Worker(const Worker&) = delete;

    void run(size_t number) {
        begin_ = number * job_.queries_per_job;
        end_ = std::min(begin_ + job_.queries_per_job, job_.queries.n);
        reset();
        if (probes_) meet_probed();
        else meet_all();
        for (size_t slot = 0; slot < end_ - begin_; ++slot) write_out(slot);
        publish_counters();
    }

private:
    void reset() {
        const size_t n = end_ - begin_;
        std::fill_n(counts_.begin(), n, 0u);
        std::fill_n(checked_.begin(), n, 0u);
        std::fill_n(best_count_.begin(), n, 0u);
        for (size_t slot = 0; slot < n; ++slot) {
            prepare_errors(slot);
            const float least = least_score(slot);
            bounds_[slot].least = std::isinf(least) ? kNone : value_of_score(begin_ + slot, least);
            weights_[slot] = static_cast<float>(1.0 / scale(begin_ + slot));
        }
    }

    // ---- the bound ----

    // E of a query and a block, from the terms of the query alone (see prepare_errors).
    double error(size_t slot, size_t block) const {
        const PackedItems& items = job_.packed;
        const double norm = items.block_norms[block], residual = items.block_residuals[block];
        const Bound& by = bounds_[slot];
        const double linear = by.constant + by.norm * norm + by.residual * residual;
        return items.offsets ? linear + by.offset * (items.block_offsets[block] + norm * norm) : linear;
    }

    void prepare_errors(size_t slot) {
        const size_t query = begin_ + slot;
        const double length = job_.rounded.norms[query], residual = job_.rounded.residuals[query];
        const double unit = 1.0 / scale(query);
        bounds_[slot] = Bound{};
        if (job_.values_decide) return;
        const double slack = kFloatSlack * (length + residual);
        const double share = job_.error_share;
        bounds_[slot] = {(share * residual + slack) * unit, (share * length + slack) * unit, kFloatSlack * unit,
                         kTinyScore * unit + kTinySlack, kNone, 0};
        // A distance is rounded as such, and can be far larger than the inner product: (q + x)^2 <= 2 q^2 + 2 x^2.
        if (job_.packed.offsets) bounds_[slot].constant += kFloatSlack * length * length * unit;
    }

    // The row of a slot's query in the inputs and results; the rounded queries have its place instead.
    size_t row_of(size_t slot) const {
        return job_.rounded.order ? job_.rounded.order[begin_ + slot] : begin_ + slot;
    }

    // The score below which the slot's query needs no item; -infinity: it needs all.
    float least_score(size_t slot) const {
        return job_.thresholds ? std::max(job_.min_score, job_.thresholds[row_of(slot)]) : job_.min_score;
    }

    double scale(size_t query) const {
        const double scale = job_.rounded.scales[query];
        return scale > 0 ? scale : 1.0;
    }

    // The least value that a true score at least as good as `score` can have.
    double value_of_score(size_t query, float score) const {
        double value = score;
        if (job_.values_decide) return value;
        value -= std::abs(value) * 1.2e-7;
        if (job_.metric == Metric::l2) {
            const double length = job_.rounded.norms[query];
            value = (value + length * length * (1 - 1e-12)) / 2;
        }
        return value / scale(query);
    }

    float threshold(size_t slot, size_t block) {
        const double off = error(slot, block);
        bounds_[slot].worst = std::max(bounds_[slot].worst, off);
        return rounded_down(bounds_[slot].least - off);
    }

    bool out_of_reach(size_t slot, size_t block) const {
        const size_t query = begin_ + slot;
        if (job_.values_decide) return false;
        const double highest = (job_.rounded.norms[query] + job_.rounded.residuals[query]) *
                               job_.packed.block_norms[block] / scale(query);
        return highest + error(slot, block) < bounds_[slot].least - error(slot, block);
    }

    // ---- meeting items ----

    void meet_all() {
        for (size_t block = 0; block < job_.packed.blocks; ++block) {
            rows_.clear();
            for (size_t slot = 0; slot < end_ - begin_; ++slot)
                if (!out_of_reach(slot, block) && may_get_some(slot, block))
                    rows_.push_back(static_cast<uint32_t>(slot));
            meet(block);
        }
    }

    bool may_get_some(size_t slot, size_t block) const {
        return !job_.rule || may_hold(*job_.rule, row_of(slot), block);
    }

    // Scans one block for the queries of rows_.
    void meet(size_t block) {
        if (rows_.empty()) return;
        const size_t rows = rows_.size();
        QueryPanel panel = make_panel(block);
        const PackedItems& items = job_.packed;
        const size_t last = items.block_tiles[block + 1], end = items.block_tiles[items.blocks];
        for (size_t tile = items.block_tiles[block]; tile < last; tile += kStripTiles) {
            const size_t tiles = std::min(kStripTiles, last - tile);
            ItemRun run{items.codes + tile * kTileItems * width_, items.scales + tile * kTileItems,
                        items.offsets ? items.offsets + tile * kTileItems : nullptr,
                        static_cast<uint32_t>(tile * kTileItems), tiles};
            run.ahead = std::min(kStripTiles, end - tile - tiles) * kTileItems * width_;
            Survivors survivors{values_.data(), items_.data(), counts_.data(), stride_, static_cast<uint32_t>(limit_),
                                full_.data(), 0};
            if (masks_ && masks_->any()) panel.allowed = masks_->of(tile * kTileItems, tiles * kTileItems);
            kernels_.scan(panel, run, width_, survivors);
            scanned_ += rows * tiles;  // without padding, so that every instruction set counts the same
            for (size_t i = 0; i < survivors.n_full; ++i) {
                const uint32_t slot = rows_[full_[i]];
                cut(slot);
                thresholds_[full_[i]] = threshold(slot, block);
            }
        }
    }

    QueryPanel make_panel(size_t block) {
        const size_t n = rows_.size(), room = padded(n, kernels_.query_group);
        for (size_t row = 0; row < n; ++row) thresholds_[row] = threshold(rows_[row], block);
        if (masks_) {
            asked_.resize(n);
            for (size_t row = 0; row < n; ++row) asked_[row] = static_cast<uint32_t>(row_of(rows_[row]));
            masks_->take(asked_.data(), n, room);
        }
        return pad_panel(job_.rounded, begin_, job_.packed.offsets ? weights_.data() : nullptr);
    }

    // The panel of rows_ among the queries from `first` on, whose thresholds are set. Pads rows_; the rows that it adds
    // write nothing.
    QueryPanel pad_panel(const RoundedQueries& rounded, size_t first, const float* weights) {
        const size_t n = rows_.size(), room = padded(n, kernels_.query_group);
        std::fill(thresholds_.begin() + n, thresholds_.begin() + room, kNothing);
        rows_.resize(room, 0);
        const int8_t* codes = rounded.codes + first * width_;
        if (kernels_.copies_panel) {
            for (size_t row = 0; row < room; ++row)
                copy_codes(codes + rows_[row] * width_, width_, codes_.data() + row * width_);
            codes = codes_.data();
        }
        return {codes, rounded.starts + first, weights, rows_.data(), thresholds_.data(), room};
    }

    // ---- buffers ----

    bool barred(size_t slot, uint32_t item) const {
        const size_t query = row_of(slot);
        const uint32_t position = job_.packed.order[item];
        if (job_.exclude && job_.exclude[query] == static_cast<int64_t>(position)) return true;
        return job_.rule && !holds(*job_.rule, query, item, position, job_.rule->masked[query] != 0);
    }

    // Removes excluded items from the pairs written since the last call.
    void check_new(size_t slot) {
        if (!job_.exclude && !job_.rule) {
            checked_[slot] = counts_[slot];
            return;
        }
        float* values = values_.data() + slot * stride_;
        uint32_t* items = items_.data() + slot * stride_;
        uint32_t kept = checked_[slot];
        for (uint32_t i = kept; i < counts_[slot]; ++i) {
            values[kept] = values[i];
            items[kept] = items[i];
            kept += !barred(slot, items[i]);
        }
        counts_[slot] = checked_[slot] = kept;
    }

    // Raises the query's threshold to the k-th value of its buffer, and drops pairs that cannot be among the k best.
    void tighten(size_t slot) {
        survivors_ += counts_[slot] - checked_[slot];
        check_new(slot);
        float* values = values_.data() + slot * stride_;
        uint32_t* items = items_.data() + slot * stride_;
        const uint32_t n = counts_[slot];
        if (!job_.caps.empty()) {
            tighten_capped(slot);
            return;
        }
        if (n >= job_.k) {
            const double value = kernels_.kth_largest(values, n, job_.k, scratch_.data());
            bounds_[slot].least = std::max(bounds_[slot].least, value - bounds_[slot].worst);
        }
        const float bar = rounded_down(bounds_[slot].least - bounds_[slot].worst);
        counts_[slot] = checked_[slot] = kernels_.keep_above(values, items, n, bar);
    }

    // The same under caps: k items that obey them bound the k-th score, and an item whose group is surely full is dropped.
    void tighten_capped(size_t slot) {
        float* values = values_.data() + slot * stride_;
        uint32_t* items = items_.data() + slot * stride_;
        const uint32_t n = counts_[slot];
        for (uint32_t i = 0; i < n; ++i) by_value_[i] = {values[i], items[i]};
        std::sort(by_value_.begin(), by_value_.begin() + n, [](const Valued& a, const Valued& b) {
            return a.value > b.value || (a.value == b.value && a.item < b.item);
        });
        size_t taken = 0;
        for (uint32_t i = 0; i < n; ++i)
            if (caps_.take(job_.packed.order[by_value_[i].item], by_value_[i].value) && ++taken == job_.k)
                bounds_[slot].least = std::max(bounds_[slot].least, by_value_[i].value - bounds_[slot].worst);
        const float bar = rounded_down(bounds_[slot].least - bounds_[slot].worst);
        uint32_t kept = 0;
        for (uint32_t i = 0; i < n && by_value_[i].value >= bar; ++i) {
            if (caps_.full_above(job_.packed.order[by_value_[i].item], by_value_[i].value + 2 * bounds_[slot].worst)) continue;
            values[kept] = by_value_[i].value;
            items[kept++] = by_value_[i].item;
        }
        caps_.clear();
        counts_[slot] = checked_[slot] = kept;
    }

    void cut(size_t slot) {
        ++cuts_;
        tighten(slot);
        if (counts_[slot] > limit_ * 7 / 8) settle(slot);
    }

    // Scores a buffer in full precision, merges it into the k best of earlier buffers, and empties it.
    void settle(size_t slot) {
        const uint32_t n = counts_[slot];
        const size_t query = begin_ + slot;
        uint64_t* best = best_.data() + slot * job_.k;
        if (n > 0) {
            rescore(slot, n);
            size_t total = best_count_[slot];
            std::copy_n(best, total, keys_.begin());
            const float least = least_score(slot);
            for (uint32_t i = 0; i < n; ++i)
                if (scores_[i] >= least) keys_[total++] = sort_key(scores_[i], positions_[i]);
            const size_t kept = job_.caps.empty() ? keep_best(total) : keep_best_capped(total);
            std::copy_n(keys_.begin(), kept, best);
            best_count_[slot] = static_cast<uint32_t>(kept);
            counts_[slot] = checked_[slot] = 0;
        }
        if (best_count_[slot] == job_.k) {
            const uint64_t last = *std::max_element(best, best + job_.k);
            bounds_[slot].least = std::max(bounds_[slot].least, value_of_score(query, key_score(last)));
        }
    }

    // Brings the best of keys_ to its front. Returns how many they are: k at most.
    size_t keep_best(size_t total) {
        const size_t kept = std::min(total, job_.k);
        if (kept < total) std::nth_element(keys_.begin(), keys_.begin() + kept - 1, keys_.begin() + total);
        return kept;
    }

    size_t keep_best_capped(size_t total) {
        std::sort(keys_.begin(), keys_.begin() + total);
        size_t kept = 0;
        for (size_t i = 0; i < total && kept < job_.k; ++i)
            if (caps_.take(key_position(keys_[i]), 0)) keys_[kept++] = keys_[i];
        caps_.clear();
        return kept;
    }

    void rescore(size_t slot, uint32_t n) {
        const size_t query = row_of(slot);
        const uint32_t* items = items_.data() + slot * stride_;
        for (uint32_t i = 0; i < n; ++i) positions_[i] = job_.packed.order[items[i]];
        if (job_.values_decide) {
            std::copy_n(values_.data() + slot * stride_, n, scores_.data());
            return;
        }
        kernels_.widen(job_.queries, query, query_.data());
        RescoreJob rescore{job_.items, job_.metric, query_.data(),
                           job_.metric == Metric::cosine ? kernels_.norm(job_.queries, query) : 1.0, job_.item_norms};
        kernels_.rescore(rescore, positions_.data(), n, scores_.data());
        rescored_ += n;
    }

    void write_out(size_t slot) {
        tighten(slot);
        settle(slot);
        uint64_t* best = best_.data() + slot * job_.k;
        const size_t n = best_count_[slot];
        std::sort(best, best + n);
        int64_t* positions = result_.positions + row_of(slot) * job_.k;
        float* scores = result_.scores + row_of(slot) * job_.k;
        for (size_t rank = 0; rank < job_.k; ++rank) {
            positions[rank] = rank < n ? static_cast<int64_t>(key_position(best[rank])) : -1;
            scores[rank] = rank < n ? key_score(best[rank]) : -std::numeric_limits<float>::infinity();
        }
    }

    void publish_counters() {
        uint64_t* counters[4] = {&survivors_, &cuts_, &rescored_, &scanned_};
        for (size_t i = 0; i < 4; ++i) {
            __atomic_fetch_add(&result_.counters[i], *counters[i], __ATOMIC_RELAXED);
            *counters[i] = 0;
        }
    }

    double centre_scale(size_t query) const {
        const double scale = probes_->rounded->scales[query];
        return scale > 0 ? scale : 1.0;
    }

    template <class Take>
    void scan_centres(const PackedItems& centres, const float* bars, Take take);
    QueryPanel make_centre_panel(size_t first, size_t n, const float* bars);
    void rank_centres();
    void meet_cells(const float* bars, bool first_met);
    float bar_after_first(size_t slot) const;
    void meet_probed();

    const KernelTable kernels_;
    const JoinJob& job_;
    const Probes* probes_;
    JoinResult& result_;
    const size_t width_, limit_, stride_;
    size_t begin_ = 0, end_ = 0;
    uint64_t survivors_ = 0, cuts_ = 0, rescored_ = 0, scanned_ = 0;
    std::vector<float> centre_values_;
    std::vector<uint32_t> centre_items_;
    std::vector<float> values_, thresholds_, weights_, centre_weights_, scores_;
    std::vector<uint32_t> items_, counts_, checked_, best_count_, rows_, full_, positions_;
    std::vector<uint64_t> best_, keys_;
    std::vector<double> query_;
    std::vector<int32_t> scratch_;
    std::vector<int8_t> codes_;
    std::vector<Bound> bounds_;
    CellLists lists_;
    struct Valued {
        float value;
        uint32_t item;
    };
    std::vector<Valued> by_value_;
    std::vector<uint32_t> asked_;
    std::optional<RuleMasks> masks_;
    CapCounter caps_;
};

// ---- choosing cells ----

// Scans some centres for the job's queries, a few queries at a time, and emits each query's values above its threshold.
template <class Take>
void Worker::scan_centres(const PackedItems& centres, const float* bars, Take take) {
    const size_t room = centres.block_tiles[centres.blocks] * kTileItems;
    const size_t stride = room + kStripItems + kTileItems;
    const size_t chunk = padded(kCentreQueries, kernels_.query_group);
    centre_values_.resize(chunk * stride);
    centre_items_.resize(chunk * stride);
    for (size_t first = 0; first < end_ - begin_; first += chunk) {
        const size_t n = std::min(chunk, end_ - begin_ - first);
        QueryPanel panel = make_centre_panel(first, n, bars);
        std::vector<uint32_t> counts(chunk, 0), full(chunk);
        Survivors survivors{centre_values_.data(), centre_items_.data(), counts.data(), stride,
                            static_cast<uint32_t>(room), full.data(), 0};
        const size_t tiles = centres.block_tiles[centres.blocks];
        for (size_t tile = 0; tile < tiles; tile += kStripTiles) {
            ItemRun run{centres.codes + tile * kTileItems * width_, centres.scales + tile * kTileItems,
                        centres.offsets ? centres.offsets + tile * kTileItems : nullptr,
                        static_cast<uint32_t>(tile * kTileItems), std::min(kStripTiles, tiles - tile)};
            kernels_.scan(panel, run, width_, survivors);
        }
        for (size_t row = 0; row < n; ++row)
            take(first + row, centre_values_.data() + row * stride, centre_items_.data() + row * stride, counts[row]);
    }
}

QueryPanel Worker::make_centre_panel(size_t first, size_t n, const float* bars) {
    rows_.resize(n);
    centre_weights_.resize(n);
    for (size_t row = 0; row < n; ++row) {
        rows_[row] = static_cast<uint32_t>(row);
        thresholds_[row] = bars ? bars[first + row] : -std::numeric_limits<float>::infinity();
        centre_weights_[row] = static_cast<float>(1.0 / centre_scale(begin_ + first + row));
    }
    return pad_panel(*probes_->rounded, begin_ + first, probes_->centres.offsets ? centre_weights_.data() : nullptr);
}

// From a sample of the centres: the threshold of the query's initial probes, and its baseline.
void Worker::rank_centres() {
    lists_.nearest.resize(end_ - begin_);
    lists_.firsts.resize(end_ - begin_);
    lists_.floors.resize(end_ - begin_);
    lists_.bars.resize(end_ - begin_);
    std::vector<int32_t> scratch;
    scan_centres(probes_->sample, nullptr, [&](size_t slot, const float* values, const uint32_t*, uint32_t n) {
        scratch.resize(n);
        auto ranked = [&](size_t rank) { return kernels_.kth_largest(values, n, std::min<size_t>(rank, n), scratch.data()); };
        lists_.nearest[slot] = ranked(std::max<size_t>(1, probes_->first_rank / kNearestShare));
        lists_.firsts[slot] = ranked(probes_->first_rank);
        lists_.floors[slot] = ranked(probes_->floor_rank);
    });
}

// Lists the centres above the thresholds and scans their cells. Initial probes: the nearest cells of every query first,
// so that the others are scanned with a threshold; else the cells below the initial probes.
void Worker::meet_cells(const float* bars, bool first_met) {
    const size_t blocks = job_.packed.blocks, passes = first_met ? 1 : 2;
    lists_.starts.assign(passes * blocks + 1, 0);
    size_t listed = 0;
    scan_centres(probes_->centres, bars, [&](size_t slot, const float* values, const uint32_t* cells, uint32_t n) {
        if (lists_.probed.size() < listed + n) lists_.probed.resize(std::max(lists_.probed.size() * 3 / 2, listed + n));
        const float nearest = lists_.nearest[slot], first = lists_.firsts[slot];
        const uint64_t row = static_cast<uint64_t>(slot) << 32;
        uint64_t* to = lists_.probed.data() + listed;
        uint32_t* sizes = lists_.starts.data() + 1;
        for (uint32_t i = 0; i < n; ++i) {
            if (first_met && values[i] >= first) continue;
            if (!may_get_some(slot, cells[i])) continue;
            const size_t place = first_met || values[i] >= nearest ? cells[i] : cells[i] + blocks;
            *to++ = row | place;
            ++sizes[place];
        }
        listed = static_cast<size_t>(to - lists_.probed.data());
    });
    for (size_t place = 0; place < passes * blocks; ++place) lists_.starts[place + 1] += lists_.starts[place];
    lists_.by_cell.resize(listed);
    std::vector<uint32_t> next(lists_.starts.begin(), lists_.starts.end() - 1);
    for (size_t i = 0; i < listed; ++i)
        lists_.by_cell[next[static_cast<uint32_t>(lists_.probed[i])]++] = static_cast<uint32_t>(lists_.probed[i] >> 32);
    for (size_t place = 0; place < passes * blocks; ++place) {
        if (place == blocks)
            for (size_t slot = 0; slot < end_ - begin_; ++slot) tighten(slot);
        rows_.assign(lists_.by_cell.begin() + lists_.starts[place], lists_.by_cell.begin() + lists_.starts[place + 1]);
        meet(place % blocks);
    }
}

// The centre value of a query's further probes, once its k-th score of the initial probes is known exactly.
float Worker::bar_after_first(size_t slot) const {
    const size_t query = begin_ + slot;
    double score = job_.thresholds ? job_.thresholds[row_of(slot)] : kNone;
    const uint64_t* best = best_.data() + slot * job_.k;
    if (best_count_[slot] == job_.k) score = std::max<double>(score, key_score(*std::max_element(best, best + job_.k)));
    if (score == kNone) return -std::numeric_limits<float>::infinity();
    const double length = job_.rounded.norms[query];
    if (job_.metric == Metric::l2) score = (score + length * length) / 2;
    const double floor = lists_.floors[slot] * centre_scale(query);
    const double bar = floor + probes_->slope * (score - floor) + probes_->gap * probes_->spreads[query];
    const float bar_value = static_cast<float>(bar / centre_scale(query));
    return std::isnan(bar_value) ? -std::numeric_limits<float>::infinity() : bar_value;
}

void Worker::meet_probed() {
    rank_centres();
    meet_cells(lists_.firsts.data(), false);
    if (std::isinf(probes_->gap)) return;
    for (size_t slot = 0; slot < end_ - begin_; ++slot) {
        tighten(slot);
        settle(slot);
        lists_.bars[slot] = bar_after_first(slot);
    }
    meet_cells(lists_.bars.data(), true);
}

}  // namespace

void count_eligible(const KernelTable& kernels, const PackedItems& items, const Rule& rule, size_t n, size_t threads,
                    int64_t* counts) {
    constexpr size_t kRows = 256;
    auto make_worker = [&] {
        auto masks = std::make_shared<RuleMasks>(kernels, rule, kRows);
        auto rows = std::make_shared<std::vector<uint32_t>>();
        return std::function<void(size_t)>([&, masks, rows](size_t job) {
            const size_t begin = job * kRows, end = std::min(n, begin + kRows);
            std::fill(counts + begin, counts + end, 0);
            for (size_t block = 0; block < items.blocks; ++block) {
                rows->clear();
                for (size_t query = begin; query < end; ++query)
                    if (may_hold(rule, query, block)) rows->push_back(static_cast<uint32_t>(query));
                if (rows->empty()) continue;
                masks->take(rows->data(), rows->size(), rows->size());
                const size_t last = items.block_tiles[block + 1];
                for (size_t tile = items.block_tiles[block]; tile < last; tile += kStripTiles) {
                    const size_t first = tile * kTileItems, held = std::min(kStripTiles, last - tile) * kTileItems;
                    const uint64_t* found = masks->any() ? masks->of(first, held) : nullptr;
                    uint64_t real = 0;
                    for (size_t i = 0; i < held; ++i) real |= uint64_t(items.order[first + i] != kNoItem) << i;
                    for (size_t row = 0; row < rows->size(); ++row) {
                        const size_t query = (*rows)[row];
                        uint64_t left = found ? found[row] & real : real;
                        if (rule.lazy.steps.empty() && rule.masked[query]) {
                            counts[query] += __builtin_popcountll(left);
                            continue;
                        }
                        for (; left; left &= left - 1) {
                            const size_t place = first + static_cast<size_t>(__builtin_ctzll(left));
                            counts[query] += holds(rule, query, place, items.order[place], rule.masked[query] != 0);
                        }
                    }
                }
            }
        });
    };
    run_jobs((n + kRows - 1) / kRows, threads, make_worker, nullptr);
}

void join(const KernelTable& kernels, const JoinJob& job, const Probes* probes,
          const std::function<void(size_t, size_t)>& report, JoinResult& result) {
    const size_t jobs = (job.queries.n + job.queries_per_job - 1) / job.queries_per_job;
    auto make_worker = [&] {
        auto worker = std::make_shared<Worker>(kernels, job, probes, result);
        return std::function<void(size_t)>([worker](size_t number) { worker->run(number); });
    };
    std::function<void(size_t)> report_jobs;
    if (report)
        report_jobs = [&](size_t done) { report(std::min(done * job.queries_per_job, job.queries.n), job.queries.n); };
    run_jobs(jobs, job.threads, make_worker, report_jobs);
}

}  // namespace nearcast
