// Arrays of Python as the kernels take them. Nothing that Python can pass may make a kernel read or write out of bounds:
// all that a kernel relies on is checked here; std::invalid_argument (ValueError) names the argument that does not fit.
//
// Contents (positions, starts, groups) are checked when an object is made, so that the error comes where the fault is, and
// in every call again, since Python may have written to the arrays: a pass over 4 bytes an item, against a join's products.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "join.h"

namespace nearcast {

namespace nb = nanobind;

using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr size_t kMostWidth = 8192;           // sums of so many 8-bit products stay below 2^31
constexpr size_t kMostPlaces = kNoItem - kStripItems;
constexpr size_t kMostSlots = size_t(1) << 28;  // k; three times that still is a 32-bit count

// ---- checks ----

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

inline void require(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument(what);
}

template <class Held>
void require_aligned(const Held& array, size_t element, const char* name) {
    if (reinterpret_cast<uintptr_t>(array.data()) % element)
        throw std::invalid_argument(std::string(name) + " is not aligned; pass a copy");
}

template <class T, class... More>
void require_size(const nb::ndarray<T, More...>& array, size_t size, const char* name) {
    if (array.size() != size)
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " values; needed are " +
                                    std::to_string(size));
    require_aligned(array, sizeof(T), name);
}

template <class A>
void require_size(const std::optional<A>& array, size_t size, const char* name) {
    if (!array) throw std::invalid_argument(std::string(name) + " is missing");
    require_size(*array, size, name);
}

inline size_t product(size_t a, size_t b) {
    size_t result;
    if (__builtin_mul_overflow(a, b, &result)) throw std::invalid_argument("an array would be too large");
    return result;
}

// Widths that the scans take: whole score lanes, and whole 64-byte tile rows above one of them.
inline void require_width(size_t width) {
    require(width > 0 && width <= kMostWidth && width % kScoreLanes == 0 && (width <= 64 || width % 64 == 0),
            "width is " + std::to_string(width) + "; needed is 16, 32, 48 or a multiple of 64 up to " +
                std::to_string(kMostWidth));
}

// Where lists begin in a flat array: starts[0] <= starts[1] <= ... <= held.
template <class T>
void require_starts(const Array<T>& starts, size_t held, const char* name) {
    require_aligned(starts, sizeof(T), name);
    bool ascending = starts.size() > 0 && starts.data()[0] >= 0;
    for (size_t i = 1; ascending && i < starts.size(); ++i) ascending = starts.data()[i - 1] <= starts.data()[i];
    require(ascending && static_cast<uint64_t>(starts.data()[starts.size() - 1]) <= held,
            std::string(name) + " must begin at 0 or above, ascend, and end within the array that it is about");
}

inline void require_positions(const Array<uint32_t>& positions, size_t held, const char* name) {
    require_aligned(positions, sizeof(uint32_t), name);
    uint32_t largest = 0;
    for (size_t i = 0; i < positions.size(); ++i) largest = std::max(largest, positions.data()[i]);
    require(positions.size() == 0 || largest < held,
            std::string(name) + " holds " + std::to_string(largest) + "; there are " + std::to_string(held) + " rows");
}

inline Vectors vectors_of(const AnyMatrix& array) {
    const auto type = array.dtype();
    ElementType element;
    if (type == nb::dtype<float>()) element = ElementType::float32;
    else if (type == nb::dtype<int8_t>()) element = ElementType::int8;
    else if (type == nb::dtype<uint8_t>()) element = ElementType::uint8;
    else if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 16)
        element = ElementType::float16;
    else throw std::invalid_argument("vectors must be float16, float32, int8 or uint8");
    require(array.shape(1) <= kMostWidth, "vectors have " + std::to_string(array.shape(1)) + " dimensions; at most " +
                                              std::to_string(kMostWidth) + " are possible");
    require_aligned(array, type.bits / 8, "vectors");
    return {array.data(), element, array.shape(0), array.shape(1)};
}

inline Metric metric_of(int number) {
    require(number >= 0 && number <= 2, "metric must be 0, 1 or 2, got " + std::to_string(number));
    return static_cast<Metric>(number);
}

// ---- packed items and rounded queries ----

class PackedArrays {
public:
    PackedArrays(Array<uint8_t> codes, Array<float> scales, std::optional<Array<float>> offsets, Array<uint32_t> order,
                 Array<uint64_t> block_tiles, Array<double> block_norms, Array<double> block_residuals,
                 Array<double> block_offsets, size_t width)
        : codes_(codes), scales_(scales), offsets_(offsets), order_(order), block_tiles_(block_tiles),
          block_norms_(block_norms), block_residuals_(block_residuals), block_offsets_(block_offsets), width_(width) {
        require_width(width);
        require(places() % kTileItems == 0 && places() <= kMostPlaces, "order does not fill whole tiles");
        require_size(codes, product(places(), width), "codes");
        require_size(scales, places(), "scales");
        if (offsets) require_size(offsets, places(), "offsets");
        require_size(block_tiles, blocks() + 1, "block_tiles");
        require_size(block_residuals, blocks(), "block_residuals");
        require_size(block_offsets, blocks(), "block_offsets");
        require_aligned(block_norms, sizeof(double), "block_norms");
        require_aligned(order, sizeof(uint32_t), "order");
        check();
    }

    struct Extent {
        size_t positions = 0;  // rows of items that the order asks for
        size_t used = 0;       // places up to the last item
    };

    Extent check() const {
        require_starts(block_tiles_, places() / kTileItems, "block_tiles");
        Extent extent;
        for (size_t place = 0; place < places(); ++place) {
            const uint32_t position = order_.data()[place];
            if (position == kNoItem) {
                // A scale that is a number would let the scan write down an item that is not there.
                require(std::isnan(scales_.data()[place]), "scales must be NaN where there is no item");
                continue;
            }
            extent.positions = std::max(extent.positions, size_t(position) + 1);
            extent.used = place + 1;
        }
        return extent;
    }

    PackedItems view() const {
        return {codes_.data(), scales_.data(), offsets_ ? offsets_->data() : nullptr, order_.data(),
                block_tiles_.data(), block_norms_.data(), block_residuals_.data(), block_offsets_.data(), blocks(),
                width_};
    }
    size_t width() const { return width_; }
    size_t blocks() const { return block_norms_.size(); }
    size_t places() const { return order_.size(); }
    bool has_offsets() const { return offsets_.has_value(); }

private:
    Array<uint8_t> codes_;
    Array<float> scales_;
    std::optional<Array<float>> offsets_;
    Array<uint32_t> order_;
    Array<uint64_t> block_tiles_;
    Array<double> block_norms_, block_residuals_, block_offsets_;
    size_t width_;
};

class QueryArrays {
public:
    QueryArrays(Matrix<int8_t> codes, Array<int32_t> starts, Array<double> scales, Array<double> residuals,
                Array<double> norms, std::optional<Array<uint32_t>> order)
        : codes_(codes), starts_(starts), scales_(scales), residuals_(residuals), norms_(norms), order_(order) {
        require_width(width());
        require_size(starts, n(), "starts");
        require_size(scales, n(), "scales");
        require_size(residuals, n(), "residuals");
        require_size(norms, n(), "norms");
        if (order) require_size(order, n(), "order");
        check();
    }

    void check() const {
        const int32_t most = static_cast<int32_t>(128 * 128 * width());
        for (size_t i = 0; i < n(); ++i)
            require(starts_.data()[i] >= -most && starts_.data()[i] <= most, "starts are no sums of codes");
        if (!order_) return;
        std::vector<bool> seen(n());  // a row that is named twice would be written by two threads, and another by none
        for (size_t i = 0; i < n(); ++i) {
            const uint32_t row = order_->data()[i];
            require(row < n() && !seen[row], "the order of the queries must name each row once");
            seen[row] = true;
        }
    }

    RoundedQueries view() const {
        return {codes_.data(), starts_.data(), scales_.data(), residuals_.data(), norms_.data(),
                order_ ? order_->data() : nullptr};
    }
    size_t n() const { return codes_.shape(0); }
    size_t width() const { return codes_.shape(1); }

private:
    Matrix<int8_t> codes_;
    Array<int32_t> starts_;
    Array<double> scales_, residuals_, norms_;
    std::optional<Array<uint32_t>> order_;
};

struct ProbeArrays {
    QueryArrays rounded;
    PackedArrays centres, sample;
    size_t first_rank, floor_rank;
    double slope, gap;
    Array<double> spreads;

    void check(size_t n, const PackedArrays& packed) const {
        require(rounded.n() == n && rounded.width() == packed.width(), "probes: the queries do not fit");
        require(centres.width() == packed.width() && sample.width() == packed.width(), "probes: widths differ");
        require(centres.blocks() == 1 && sample.blocks() == 1, "probes: centres must be one block");
        require(centres.check().used <= packed.blocks(), "probes: there are more centres than blocks");
        sample.check();
        rounded.check();
        require(centres.has_offsets() == sample.has_offsets(), "probes: offsets of the centres or the sample are missing");
        require(first_rank > 0 && floor_rank > 0, "probes: ranks count from 1");
        require_size(spreads, n, "spreads");
    }

    Probes view(const RoundedQueries* queries) const {
        return {queries, centres.view(), sample.view(), first_rank, floor_rank, slope, gap, spreads.data()};
    }
};

// ---- rules and caps ----

// Arrays of one leaf; which of them are there depends on its kind.
struct LeafArrays {
    int kind;
    bool negated;
    std::optional<Array<int32_t>> codes, low, high, block_low, block_high;
    std::optional<Array<uint64_t>> item_words, query_words, block_words;
    size_t words;
    std::optional<Array<int64_t>> item_starts, query_starts;
    std::optional<Array<int32_t>> item_values, query_values;

    void check_contents() const {
        require(kind >= 0 && kind <= 2, "leaf: no kind has the number " + std::to_string(kind));
        if (static_cast<LeafKind>(kind) != LeafKind::shared) return;
        require(item_starts && item_values && query_starts && query_values, "leaf: lists are missing");
        require_aligned(*item_values, sizeof(int32_t), "item_values");
        require_aligned(*query_values, sizeof(int32_t), "query_values");
        require_starts(*item_starts, item_values->size(), "item_starts");
        require_starts(*query_starts, query_values->size(), "query_starts");
    }

    void check(size_t n, const PackedArrays& packed, size_t positions) const {
        check_contents();
        const size_t places = packed.places(), blocks = packed.blocks();
        switch (static_cast<LeafKind>(kind)) {
        case LeafKind::interval:
            require_size(codes, places, "codes of a leaf");
            require_size(low, n, "low");
            require_size(high, n, "high");
            require_size(block_low, blocks, "block_low");
            require_size(block_high, blocks, "block_high");
            return;
        case LeafKind::overlap:
            require_size(item_words, product(words, places), "item_words");
            require_size(query_words, product(words, n), "query_words");
            require_size(block_words, product(words, blocks), "block_words");
            return;
        case LeafKind::shared:
            require(item_starts->size() > positions, "item_starts do not cover all items");
            require_size(query_starts, n + 1, "query_starts");
            return;
        }
    }

    RuleLeaf view() const {
        auto at = [](const auto& array) { return array ? array->data() : nullptr; };
        return {static_cast<LeafKind>(kind), negated, at(codes), at(low), at(high), at(block_low), at(block_high),
                at(item_words), at(query_words), at(block_words), words, at(item_starts), at(item_values),
                at(query_starts), at(query_values)};
    }
};

using StepList = std::vector<std::tuple<int, int>>;

class RuleArrays {
public:
    RuleArrays(std::vector<LeafArrays> leaves, const StepList& dense, const StepList& lazy, Array<uint8_t> masked,
               size_t places)
        : leaves_(std::move(leaves)), dense_(make_program(steps_of(dense), leaves_.size())),
          lazy_(make_program(steps_of(lazy), leaves_.size())), masked_(masked), places_(places) {
        for (const LeafArrays& leaf : leaves_) leaf.check_contents();
        for (size_t leaf : dense_.leaves)
            require(static_cast<LeafKind>(leaves_[leaf].kind) != LeafKind::shared, "rule: masks cannot tell shared lists");
    }

    void check(const PackedArrays& packed, size_t positions) const {
        require(places_ == packed.places(), "rule: it is about other items");
        for (const LeafArrays& leaf : leaves_) leaf.check(n(), packed, positions);
    }

    Rule view() const {
        Rule rule{{}, dense_, lazy_, masked_.data(), places_};
        for (const LeafArrays& leaf : leaves_) rule.leaves.push_back(leaf.view());
        return rule;
    }
    size_t n() const { return masked_.size(); }

private:
    static std::vector<RuleStep> steps_of(const StepList& pairs) {
        std::vector<RuleStep> steps;
        for (auto [kind, count] : pairs) steps.push_back({static_cast<StepKind>(kind), count});
        return steps;
    }

    std::vector<LeafArrays> leaves_;
    RuleProgram dense_, lazy_;
    Array<uint8_t> masked_;
    size_t places_;
};

class CapArrays {
public:
    CapArrays(Array<int32_t> groups, size_t n_groups, uint32_t most) : groups_(groups), n_groups_(n_groups), most_(most) {
        require_aligned(groups, sizeof(int32_t), "groups");
        require(n_groups <= std::min<size_t>(groups.size() + 1024, INT32_MAX),
                "cap: groups must be numbered from 0, without gaps");
        check();
    }

    void check() const {
        int32_t largest = -1;
        for (size_t i = 0; i < groups_.size(); ++i) largest = std::max(largest, groups_.data()[i]);
        require(largest < static_cast<int32_t>(n_groups_), "cap: n_groups is too small");
    }

    Cap view() const { return {groups_.data(), n_groups_, most_}; }
    size_t size() const { return groups_.size(); }

private:
    Array<int32_t> groups_;
    size_t n_groups_;
    uint32_t most_;
};

}  // namespace nearcast
