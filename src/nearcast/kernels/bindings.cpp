// Python's view of the kernels: checks shapes, releases the lock, hands pointers on.
//
// Private to the package: nearcast.kernels wraps every function and derives what is not asked of its callers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

#include "ceilings.h"
#include "dispatch.h"
#include "join.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nearcast;

namespace {

using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> make_array(std::vector<size_t> shape) {
    size_t size = 1;
    for (size_t side : shape) size *= side;
    // Not value-initialised: the pages are first touched by the threads that fill them.
    T* data = new T[std::max<size_t>(size, 1)];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
}

Vectors vectors_of(const AnyMatrix& array) {
    const auto type = array.dtype();
    ElementType element;
    if (type == nb::dtype<float>()) element = ElementType::float32;
    else if (type == nb::dtype<int8_t>()) element = ElementType::int8;
    else if (type == nb::dtype<uint8_t>()) element = ElementType::uint8;
    else if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 16)
        element = ElementType::float16;
    else throw std::invalid_argument("vectors must be float16, float32, int8 or uint8");
    return {array.data(), element, array.shape(0), array.shape(1)};
}

constexpr size_t kRowsPerJob = 4096;

void for_row_ranges(size_t n, size_t threads, const std::function<std::function<void(size_t, size_t)>()>& make) {
    auto make_worker = [&] {
        auto work = make();
        return std::function<void(size_t)>(
            [work, n](size_t job) { work(job * kRowsPerJob, std::min(n, (job + 1) * kRowsPerJob)); });
    };
    run_jobs((n + kRowsPerJob - 1) / kRowsPerJob, threads, make_worker, nullptr);
}

nb::tuple quantise(const std::string& isa, AnyMatrix array, Array<double> sign, Array<uint32_t> place,
                   std::optional<Array<double>> centre, size_t width, bool normalise, int levels, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors vectors = vectors_of(array);
    if (sign.shape(0) != vectors.d || place.shape(0) != vectors.d || width % kScoreLanes || width < vectors.d)
        throw std::invalid_argument("quantise: the rotation does not fit the vectors");
    const Rotation rotation{sign.data(), place.data(), centre ? centre->data() : nullptr, width, normalise};
    auto codes = make_array<int8_t>({vectors.n, width});
    auto scales = make_array<double>({vectors.n});
    auto residuals = make_array<double>({vectors.n});
    auto norms = make_array<double>({vectors.n});
    Codes out{codes.data(), scales.data(), residuals.data(), norms.data()};
    {
        nb::gil_scoped_release released;
        for_row_ranges(vectors.n, threads, [&] {
            auto scratch = std::make_shared<std::vector<double>>(width + vectors.d);
            return [&, scratch](size_t begin, size_t end) {
                kernels.quantise(vectors, begin, end, rotation, levels, scratch->data(), out);
            };
        });
    }
    return nb::make_tuple(codes, scales, residuals, norms);
}

void pack_tile(const int8_t* codes, const uint32_t* order, size_t width, uint8_t* tile) {
    uint32_t* out = reinterpret_cast<uint32_t*>(tile);
    for (size_t lane = 0; lane < kTileItems; ++lane) {
        if (order[lane] == kNoItem) {
            for (size_t g = 0; g < width / kGroup; ++g) out[g * kTileItems + lane] = 0x80808080u;
            continue;
        }
        const int8_t* row = codes + size_t(order[lane]) * width;
        for (size_t g = 0; g < width / kGroup; ++g) {
            uint32_t four;
            std::memcpy(&four, row + g * kGroup, kGroup);
            out[g * kTileItems + lane] = four ^ 0x80808080u;  // a signed code plus 128
        }
    }
}

nb::object pack(Matrix<int8_t> codes, Array<uint32_t> order, size_t threads) {
    const size_t tiles = order.shape(0) / kTileItems, width = codes.shape(1), n = codes.shape(0);
    if (order.shape(0) % kTileItems) throw std::invalid_argument("pack: order must fill whole tiles");
    for (size_t i = 0; i < order.shape(0); ++i)
        if (order.data()[i] != kNoItem && order.data()[i] >= n) throw std::invalid_argument("pack: no such item");
    auto packed = make_array<uint8_t>({tiles, width / kGroup, kTileItems, kGroup});
    {
        nb::gil_scoped_release released;
        for_row_ranges(tiles, threads, [&] {
            return [&](size_t begin, size_t end) {
                for (size_t t = begin; t < end; ++t)
                    pack_tile(codes.data(), order.data() + t * kTileItems, width,
                              packed.data() + t * width * kTileItems);
            };
        });
    }
    return nb::cast(packed);
}

nb::object norms(const std::string& isa, AnyMatrix array, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors vectors = vectors_of(array);
    auto out = make_array<double>({vectors.n});
    {
        nb::gil_scoped_release released;
        for_row_ranges(vectors.n, threads, [&] {
            return [&](size_t begin, size_t end) {
                for (size_t row = begin; row < end; ++row) out.data()[row] = kernels.norm(vectors, row);
            };
        });
    }
    return nb::cast(out);
}

// Scores of query i with the items positions[starts[i]..starts[i + 1]).
nb::object score_lists(const std::string& isa, int metric, AnyMatrix query_array, AnyMatrix item_array,
                       Array<uint64_t> starts, Array<uint32_t> positions, Array<double> item_norms, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors queries = vectors_of(query_array), items = vectors_of(item_array);
    if (queries.d != items.d || starts.shape(0) != queries.n + 1)
        throw std::invalid_argument("score_lists: shapes do not fit");
    auto out = make_array<float>({positions.shape(0)});
    {
        nb::gil_scoped_release released;
        for_row_ranges(queries.n, threads, [&] {
            auto query = std::make_shared<std::vector<double>>(queries.d + kScoreLanes);
            return [&, query](size_t begin, size_t end) {
                for (size_t row = begin; row < end; ++row) {
                    kernels.widen(queries, row, query->data());
                    const RescoreJob job{items, static_cast<Metric>(metric), query->data(), kernels.norm(queries, row),
                                         item_norms.data()};
                    const size_t first = starts.data()[row];
                    kernels.rescore(job, positions.data() + first, starts.data()[row + 1] - first, out.data() + first);
                }
            };
        });
    }
    return nb::cast(out);
}

// The sum of the vectors of each cell, float64, in the order given: positions[starts[c]..starts[c + 1]).
nb::object cell_sums(const std::string& isa, AnyMatrix array, Array<uint64_t> starts, Array<uint32_t> positions,
                     bool normalise, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors vectors = vectors_of(array);
    const size_t cells = starts.shape(0) - 1, d = vectors.d;
    auto out = make_array<double>({cells, d});
    {
        nb::gil_scoped_release released;
        auto make_worker = [&] {
            auto row = std::make_shared<std::vector<double>>(d);
            return std::function<void(size_t)>([&, row](size_t cell) {
                double* sums = out.data() + cell * d;
                std::fill_n(sums, d, 0.0);
                for (uint64_t i = starts.data()[cell]; i < starts.data()[cell + 1]; ++i) {
                    kernels.widen(vectors, positions.data()[i], row->data());
                    const double norm = normalise ? kernels.norm(vectors, positions.data()[i]) : 1.0;
                    const double divisor = norm > 0 ? norm : 1.0;
                    for (size_t c = 0; c < d; ++c) sums[c] += (*row)[c] / divisor;
                }
            });
        };
        run_jobs(cells, threads, make_worker, nullptr);
    }
    return nb::cast(out);
}

struct PackedArrays {
    Array<uint8_t> codes;
    Array<float> scales;
    std::optional<Array<float>> offsets;
    Array<uint32_t> order;
    Array<uint64_t> block_tiles;
    Array<double> block_norms, block_residuals, block_offsets;
    size_t width;

    PackedItems view() const {
        return {codes.data(), scales.data(), offsets ? offsets->data() : nullptr, order.data(), block_tiles.data(),
                block_norms.data(), block_residuals.data(), block_offsets.data(), block_norms.shape(0), width};
    }
};

struct QueryArrays {
    Matrix<int8_t> codes;
    Array<int32_t> starts;
    Array<double> scales, residuals, norms;

    RoundedQueries view() const {
        return {codes.data(), starts.data(), scales.data(), residuals.data(), norms.data()};
    }
};

// Arrays of one leaf; which of them are there depends on its kind.
struct LeafArrays {
    int kind;
    bool negated;
    std::optional<Array<int32_t>> codes, low, high, block_low, block_high;
    std::optional<Array<uint64_t>> item_words, query_words, block_words;
    size_t words;
    std::optional<Array<int64_t>> item_starts, query_starts;
    std::optional<Array<int32_t>> item_values, query_values;

    RuleLeaf view() const {
        auto at = [](const auto& array) { return array ? array->data() : nullptr; };
        return {static_cast<LeafKind>(kind), negated, at(codes), at(low), at(high), at(block_low), at(block_high),
                at(item_words), at(query_words), at(block_words), words, at(item_starts), at(item_values),
                at(query_starts), at(query_values)};
    }
};

struct RuleArrays {
    std::vector<LeafArrays> leaves;
    std::vector<std::tuple<int, int>> dense, lazy;
    Array<uint8_t> masked;
    size_t places;

    Rule view() const {
        Rule rule{{}, make_program(steps_of(dense), leaves.size()), make_program(steps_of(lazy), leaves.size()),
                  masked.data(), places};
        for (const LeafArrays& leaf : leaves) rule.leaves.push_back(leaf.view());
        return rule;
    }

    static std::vector<RuleStep> steps_of(const std::vector<std::tuple<int, int>>& pairs) {
        std::vector<RuleStep> steps;
        for (auto [kind, count] : pairs) steps.push_back({static_cast<StepKind>(kind), count});
        return steps;
    }
};

struct CapArrays {
    Array<int32_t> groups;
    size_t n_groups;
    uint32_t most;
};

nb::object eligible_counts(const std::string& isa, const PackedArrays& packed, const RuleArrays& rules, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    auto counts = make_array<int64_t>({rules.masked.shape(0)});
    const Rule rule = rules.view();
    {
        nb::gil_scoped_release released;
        count_eligible(kernels, packed.view(), rule, rules.masked.shape(0), threads, counts.data());
    }
    return nb::cast(counts);
}

struct ProbeArrays {
    QueryArrays rounded;
    PackedArrays centres, sample;
    size_t first_rank, floor_rank;
    double slope, gap;
    Array<double> spreads;
};

nb::tuple join_arrays(const std::string& isa, int metric, AnyMatrix query_array, AnyMatrix item_array,
                      const QueryArrays& rounded, const PackedArrays& packed, std::optional<Array<double>> item_norms,
                      std::optional<Array<int64_t>> exclude, size_t k, size_t threads, size_t queries_per_job,
                      bool values_decide, const ProbeArrays* probe_arrays, const RuleArrays* rule_arrays,
                      const std::vector<CapArrays>& caps, float min_score, std::optional<nb::callable> progress) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors queries = vectors_of(query_array), items = vectors_of(item_array);
    if (queries.d != items.d || rounded.codes.shape(0) != queries.n || rounded.codes.shape(1) != packed.width ||
        packed.order.shape(0) * packed.width != packed.codes.shape(0))
        throw std::invalid_argument("join: shapes do not fit");
    auto positions = make_array<int64_t>({queries.n, k});
    auto scores = make_array<float>({queries.n, k});
    JoinJob job{static_cast<Metric>(metric), queries, items, rounded.view(), packed.view(),
                item_norms ? item_norms->data() : nullptr, exclude ? exclude->data() : nullptr, k, threads,
                queries_per_job, values_decide, nullptr, {}, min_score};
    Rule rule;
    if (rule_arrays) {
        if (rule_arrays->masked.shape(0) != queries.n || rule_arrays->places != packed.order.shape(0))
            throw std::invalid_argument("join: the rule does not fit");
        rule = rule_arrays->view();
        job.rule = &rule;
    }
    for (const CapArrays& cap : caps) {
        if (cap.groups.shape(0) != items.n) throw std::invalid_argument("join: a cap does not fit");
        job.caps.push_back({cap.groups.data(), cap.n_groups, cap.most});
    }
    std::optional<Probes> probes;
    if (probe_arrays) {
        const ProbeArrays& p = *probe_arrays;
        if (p.centres.block_norms.shape(0) != 1 || p.rounded.codes.shape(0) != queries.n ||
            p.rounded.codes.shape(1) != packed.width)
            throw std::invalid_argument("join: the probes do not fit");
        probes = Probes{nullptr, p.centres.view(), p.sample.view(), p.first_rank, p.floor_rank, p.slope, p.gap,
                        p.spreads.data()};
    }
    RoundedQueries for_cells;
    if (probes) {
        for_cells = probe_arrays->rounded.view();
        probes->rounded = &for_cells;
    }
    std::function<void(size_t, size_t)> report;
    if (progress)
        report = [&](size_t done, size_t total) {
            nb::gil_scoped_acquire acquired;
            (*progress)(done, total);
        };
    JoinResult result{positions.data(), scores.data(), {}};
    {
        nb::gil_scoped_release released;
        join(kernels, job, probes ? &*probes : nullptr, report, result);
    }
    nb::dict counters;
    const char* names[] = {"survivors", "cuts", "rescored", "tile_rows"};
    for (size_t i = 0; i < 4; ++i) counters[names[i]] = result.counters[i];
    return nb::make_tuple(positions, scores, counters);
}

// Products done by one of the ceilings' loops, 0 where the instruction set has none.
double ceiling(const std::string& isa, int loop, size_t rounds) {
    kernels_named(isa);  // throws where it cannot run
    CeilingFunction run = nullptr;
#if defined(NEARCAST_X86)
    if (isa == "amx") run = amx_ceiling();
    if (isa == "avx512vnni") run = avx512vnni_ceiling();
    if (isa == "avx512") run = avx512_ceiling();
    if (isa == "avx2") run = avx2_ceiling();
#endif
    nb::gil_scoped_release released;
    return run ? run(static_cast<Loop>(loop), rounds) : 0.0;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of the kNN join.";
    nb::class_<PackedArrays>(m, "PackedArrays")
        .def("__init__", [](PackedArrays* self, Array<uint8_t> codes, Array<float> scales,
                            std::optional<Array<float>> offsets, Array<uint32_t> order, Array<uint64_t> block_tiles,
                            Array<double> block_norms, Array<double> block_residuals, Array<double> block_offsets,
                            size_t width) {
            new (self) PackedArrays{codes, scales, offsets, order, block_tiles, block_norms, block_residuals,
                                    block_offsets, width};
        }, nb::arg("codes"), nb::arg("scales"), nb::arg("offsets").none(), nb::arg("order"), nb::arg("block_tiles"),
           nb::arg("block_norms"), nb::arg("block_residuals"), nb::arg("block_offsets"), nb::arg("width"));
    nb::class_<QueryArrays>(m, "QueryArrays")
        .def("__init__", [](QueryArrays* self, Matrix<int8_t> codes, Array<int32_t> starts, Array<double> scales,
                            Array<double> residuals, Array<double> norms) {
            new (self) QueryArrays{codes, starts, scales, residuals, norms};
        });
    nb::class_<ProbeArrays>(m, "ProbeArrays")
        .def("__init__", [](ProbeArrays* self, const QueryArrays& rounded, const PackedArrays& centres,
                            const PackedArrays& sample, size_t first_rank, size_t floor_rank, double slope, double gap,
                            Array<double> spreads) {
            new (self) ProbeArrays{rounded, centres, sample, first_rank, floor_rank, slope, gap, spreads};
        });
    nb::class_<LeafArrays>(m, "LeafArrays")
        .def("__init__", [](LeafArrays* self, int kind, bool negated, std::optional<Array<int32_t>> codes,
                            std::optional<Array<int32_t>> low, std::optional<Array<int32_t>> high,
                            std::optional<Array<int32_t>> block_low, std::optional<Array<int32_t>> block_high,
                            std::optional<Array<uint64_t>> item_words, std::optional<Array<uint64_t>> query_words,
                            std::optional<Array<uint64_t>> block_words, size_t words,
                            std::optional<Array<int64_t>> item_starts, std::optional<Array<int64_t>> query_starts,
                            std::optional<Array<int32_t>> item_values, std::optional<Array<int32_t>> query_values) {
            new (self) LeafArrays{kind, negated, codes, low, high, block_low, block_high, item_words, query_words,
                                  block_words, words, item_starts, query_starts, item_values, query_values};
        }, nb::arg("kind"), nb::arg("negated") = false, nb::arg("codes") = nb::none(), nb::arg("low") = nb::none(),
           nb::arg("high") = nb::none(), nb::arg("block_low") = nb::none(), nb::arg("block_high") = nb::none(),
           nb::arg("item_words") = nb::none(), nb::arg("query_words") = nb::none(), nb::arg("block_words") = nb::none(),
           nb::arg("words") = 0, nb::arg("item_starts") = nb::none(), nb::arg("query_starts") = nb::none(),
           nb::arg("item_values") = nb::none(), nb::arg("query_values") = nb::none());
    nb::class_<RuleArrays>(m, "RuleArrays")
        .def("__init__", [](RuleArrays* self, std::vector<LeafArrays> leaves, std::vector<std::tuple<int, int>> dense,
                            std::vector<std::tuple<int, int>> lazy, Array<uint8_t> masked, size_t places) {
            new (self) RuleArrays{std::move(leaves), std::move(dense), std::move(lazy), masked, places};
        });
    nb::class_<CapArrays>(m, "CapArrays")
        .def("__init__", [](CapArrays* self, Array<int32_t> groups, size_t n_groups, uint32_t most) {
            new (self) CapArrays{groups, n_groups, most};
        });
    m.def("isa_statuses", [] {
        std::vector<std::tuple<std::string, bool, bool, std::string, int>> all;
        for (const IsaStatus& s : isa_statuses())
            all.emplace_back(s.name, s.available, s.tests_only, s.reason,
                             s.available ? kernels_named(s.name).query_levels : 0);
        return all;
    });
    m.def("quantise", &quantise, nb::arg("isa"), nb::arg("vectors"), nb::arg("sign"), nb::arg("place"),
          nb::arg("centre").none(), nb::arg("width"), nb::arg("normalise"), nb::arg("levels"), nb::arg("threads"));
    m.def("ceiling", &ceiling);
    m.def("pack", &pack);
    m.def("norms", &norms);
    m.def("cell_sums", &cell_sums);
    m.def("score_lists", &score_lists);
    m.def("join", &join_arrays, nb::arg("isa"), nb::arg("metric"), nb::arg("queries"), nb::arg("items"),
          nb::arg("rounded"), nb::arg("packed"), nb::arg("item_norms").none(), nb::arg("exclude").none(), nb::arg("k"),
          nb::arg("threads"), nb::arg("queries_per_job"), nb::arg("values_decide"),
          nb::arg("probes").none(), nb::arg("rule").none(), nb::arg("caps"), nb::arg("min_score"),
          nb::arg("progress").none());
    m.def("eligible_counts", &eligible_counts);
    m.def("interval_masks", [](const std::string& isa, Array<int32_t> codes, Array<int32_t> low, Array<int32_t> high) {
        if (codes.shape(0) % kTileItems || codes.shape(0) > kStripItems || low.shape(0) != high.shape(0))
            throw std::invalid_argument("interval_masks: shapes do not fit");
        auto masks = make_array<uint64_t>({low.shape(0)});
        kernels_named(isa).interval_masks(codes.data(), codes.shape(0), low.data(), high.data(), low.shape(0),
                                          masks.data());
        return masks;
    });
    m.def("overlap_masks", [](const std::string& isa, Matrix<uint64_t> item_words, Matrix<uint64_t> query_words) {
        const size_t items = item_words.shape(1), words = item_words.shape(0);
        if (items % kTileItems || items > kStripItems || query_words.shape(1) != words)
            throw std::invalid_argument("overlap_masks: shapes do not fit");
        auto masks = make_array<uint64_t>({query_words.shape(0)});
        kernels_named(isa).overlap_masks(item_words.data(), items, items, query_words.data(), words,
                                         query_words.shape(0), masks.data());
        return masks;
    });
}
