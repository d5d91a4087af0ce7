// Python's view of the kernels: checks shapes, releases the lock, hands pointers on.
//
// Private to the package: nearcast.kernels wraps every function and derives its other arguments.
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

#include "arrays.h"
#include "assign.h"
#include "ceilings.h"
#include "dispatch.h"
#include "insert_lists.h"
#include "join.h"
#include "match_rows.h"
#include "parallel.h"
#include "renew_lists.h"

using namespace nearcast;

namespace {

template <class T>
nb::ndarray<nb::numpy, T> make_array(std::vector<size_t> shape) {
    size_t size = 1;
    for (size_t side : shape) size = product(size, side);
    product(size, sizeof(T));
    // Not value-initialised: the pages are first touched by the threads that fill them.
    T* data = new T[std::max<size_t>(size, 1)];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
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
    require_width(width);
    require(width >= vectors.d, "quantise: the width is less than the dimensions of the vectors");
    require(levels >= 1 && levels <= 127, "quantise: levels must be 1 to 127, got " + std::to_string(levels));
    require_size(sign, vectors.d, "sign");
    require_size(place, vectors.d, "place");
    require_positions(place, width, "place");
    if (centre) require_size(centre, vectors.d, "centre");
    const Rotation rotation{sign.data(), place.data(), centre ? centre->data() : nullptr, width, normalise};
    auto codes = make_array<int8_t>({vectors.n, width});
    auto scales = make_array<double>({vectors.n});
    auto residuals = make_array<double>({vectors.n});
    auto norms = make_array<double>({vectors.n});
    Codes out{codes.data(), scales.data(), residuals.data(), norms.data()};
    {
        nb::gil_scoped_release released;
        for_row_ranges(vectors.n, threads, [&] {
            auto scratch = std::make_shared<std::vector<double>>(8 * (width + vectors.d) + width);
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
    require_width(width);
    require(order.shape(0) % kTileItems == 0, "pack: order must fill whole tiles");
    require_aligned(order, sizeof(uint32_t), "order");
    for (size_t i = 0; i < order.shape(0); ++i)
        require(order.data()[i] == kNoItem || order.data()[i] < n, "pack: no such item");
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
    const Metric scored = metric_of(metric);
    require(queries.d == items.d, "score_lists: queries and items differ in dimensions");
    require_size(starts, queries.n + 1, "starts");
    require_starts(starts, positions.size(), "starts");
    require_positions(positions, items.n, "positions");
    if (scored == Metric::cosine) require_size(item_norms, items.n, "item_norms");
    auto out = make_array<float>({positions.shape(0)});
    {
        nb::gil_scoped_release released;
        for_row_ranges(queries.n, threads, [&] {
            auto query = std::make_shared<std::vector<double>>(queries.d + kScoreLanes);
            return [&, query](size_t begin, size_t end) {
                for (size_t row = begin; row < end; ++row) {
                    kernels.widen(queries, row, query->data());
                    const RescoreJob job{items, scored, query->data(), kernels.norm(queries, row),
                                         item_norms.data()};
                    const size_t first = starts.data()[row];
                    kernels.rescore(job, positions.data() + first, starts.data()[row + 1] - first, out.data() + first);
                }
            };
        });
    }
    return nb::cast(out);
}

constexpr uint64_t kAhead = 4;  // rows asked for before they are needed: they lie anywhere in memory

void prefetch_row(const Vectors& vectors, size_t row) {
    const size_t bytes = vectors.d * (vectors.type == ElementType::float32   ? 4
                                      : vectors.type == ElementType::float16 ? 2
                                                                             : 1);
    const char* from = static_cast<const char*>(vectors.data) + row * bytes;
    for (size_t at = 0; at < std::min<size_t>(bytes, 512); at += 64) __builtin_prefetch(from + at);
}

// The sum of the vectors of each cell, float64, in the order given: positions[starts[c]..starts[c + 1]).
nb::object cell_sums(const std::string& isa, AnyMatrix array, Array<uint64_t> starts, Array<uint32_t> positions,
                     bool normalise, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors vectors = vectors_of(array);
    require_starts(starts, positions.size(), "starts");
    require_positions(positions, vectors.n, "positions");
    const size_t cells = starts.shape(0) - 1, d = vectors.d;
    auto out = make_array<double>({cells, d});
    {
        nb::gil_scoped_release released;
        auto make_worker = [&] {
            auto row = std::make_shared<std::vector<double>>(d);
            return std::function<void(size_t)>([&, row](size_t cell) {
                double* sums = out.data() + cell * d;
                std::fill_n(sums, d, 0.0);
                const uint64_t last = starts.data()[cell + 1];
                for (uint64_t i = starts.data()[cell]; i < last; ++i) {
                    if (i + kAhead < last) prefetch_row(vectors, positions.data()[i + kAhead]);
                    kernels.widen(vectors, positions.data()[i], row->data());
                    const double norm = normalise ? kernels.norm(vectors, positions.data()[i]) : 1.0;
                    if (norm > 0 && norm != 1.0)
                        for (size_t c = 0; c < d; ++c) (*row)[c] /= norm;
                    for (size_t c = 0; c < d; ++c) sums[c] += (*row)[c];
                }
            });
        };
        run_jobs(cells, threads, make_worker, nullptr);
    }
    return nb::cast(out);
}

// The nearest centre of each of these rows of codes, among the groups of centres whose own centres (tops) are best.
nb::object nearest_centres(const std::string& isa, Matrix<int8_t> codes, Array<double> scales, int levels,
                           Array<uint32_t> rows, const PackedArrays& centres, const PackedArrays* tops, size_t probes,
                           size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const size_t n = rows.shape(0);
    require(codes.shape(1) == centres.width(), "nearest_centres: codes and centres differ in width");
    require_size(scales, codes.shape(0), "scales");
    require_positions(rows, codes.shape(0), "rows");
    require(levels == 63 || levels == 127, "nearest_centres: levels must be 63 or 127");
    require(probes >= 1, "nearest_centres: probes must be at least 1");
    centres.check();
    AssignJob job{codes.data(), levels, scales.data(), rows.data(), n, centres.view(), nullptr, probes, threads, nullptr};
    PackedItems top_view;
    if (tops) {
        tops->check();
        top_view = tops->view();
        require(tops->width() == centres.width(), "nearest_centres: widths differ");
        require(tops->blocks() == 1 && top_view.block_tiles[1] * kTileItems >= centres.blocks(),
                "nearest_centres: tops must be one block, with one for each group");
        job.tops = &top_view;
    }
    auto nearest = make_array<uint32_t>({n});
    job.nearest = nearest.data();
    {
        nb::gil_scoped_release released;
        assign(kernels, job);
    }
    return nb::cast(nearest);
}

// The values of all centres for each row, as the join computes them.
nb::object value_centres(const std::string& isa, const QueryArrays& rows, const PackedArrays& centres, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    const PackedItems view = centres.view();
    require(rows.width() == centres.width(), "centre_values: rows and centres differ in width");
    rows.check();
    centres.check();
    require(view.block_tiles[0] == 0 && view.block_tiles[centres.blocks()] * kTileItems == centres.places(),
            "centre_values: a tile lies in no block");
    auto values = make_array<float>({rows.n(), centres.places()});
    {
        nb::gil_scoped_release released;
        centre_values(kernels, rows.view(), rows.n(), view, threads, values.data());
    }
    return nb::cast(values);
}

// Tiles with the items at these places of other tiles; kNoItem leaves a place empty.
nb::object repack(Array<uint8_t> tiles, size_t width, Array<uint32_t> places, size_t threads) {
    require_width(width);
    const size_t n = places.shape(0), held = tiles.shape(0) / width;
    require(n % kTileItems == 0, "repack: places must fill whole tiles");
    require(tiles.shape(0) == product(held, width) && held % kTileItems == 0, "repack: codes do not fill whole tiles");
    require_aligned(places, sizeof(uint32_t), "places");
    for (size_t i = 0; i < n; ++i)
        require(places.data()[i] == kNoItem || places.data()[i] < held, "repack: no such place");
    auto packed = make_array<uint8_t>({product(n, width)});
    {
        nb::gil_scoped_release released;
        for_row_ranges(n / kTileItems, threads, [&] {
            return [&](size_t begin, size_t end) {
                for (size_t i = begin * kTileItems; i < end * kTileItems; ++i) {
                    uint8_t* to = packed.data() + i / kTileItems * kTileItems * width + i % kTileItems * kGroup;
                    const uint32_t place = places.data()[i];
                    const uint8_t* from = place == kNoItem ? nullptr : tiles.data() + place / kTileItems * kTileItems * width +
                                                                           place % kTileItems * kGroup;
                    constexpr size_t kStep = kTileItems * kGroup;
                    for (size_t at = 0; at < width * kTileItems; at += kStep)
                        if (from) std::memcpy(to + at, from + at, kGroup);
                        else std::memset(to + at, 128, kGroup);
                }
            };
        });
    }
    return nb::cast(packed);
}

// Inserts candidates into lists of k. Returns the bytes of the new lists, where each begins, its size, whether it changed,
// and its last score; a list of another form has size 0.
nb::tuple insert_candidates(Array<uint8_t> data, Array<uint64_t> starts, Array<uint64_t> entrant_starts,
                            Array<uint32_t> items, Array<float> scores, int kind, Array<int64_t> numbers,
                            Array<uint64_t> offsets, Array<uint8_t> texts, size_t k, size_t threads) {
    require(kind >= 0 && kind <= 2, "insert_candidates: kind must be 0, 1 or 2");
    require(k >= 1 && k <= 0xFFFF, "insert_candidates: k must be 1 to 65535");
    const IdKind ids = static_cast<IdKind>(kind);
    require_starts(starts, data.size(), "starts");
    const size_t n = starts.size() - 1;
    require_size(entrant_starts, n + 1, "entrant_starts");
    require_starts(entrant_starts, items.size(), "entrant_starts");
    require_size(scores, items.size(), "scores");
    for (size_t i = 0; i < scores.size(); ++i)  // they are sorted, and NaN has no place in an order
        require(!std::isnan(scores.data()[i]), "insert_candidates: a score is NaN");
    require_aligned(numbers, sizeof(int64_t), "numbers");
    require_starts(offsets, texts.size(), "offsets");
    require_positions(items, ids == IdKind::text ? offsets.size() - 1 : numbers.size(), "items");
    for (size_t i = 0; ids == IdKind::text && i + 1 < offsets.size(); ++i)
        require(offsets.data()[i + 1] - offsets.data()[i] <= 0xFFFF, "insert_candidates: an id is too long");
    auto out_starts = make_array<uint64_t>({n + 1});
    uint64_t room = 0;
    for (size_t row = 0; row < n; ++row) {
        out_starts.data()[row] = room;
        room += starts.data()[row + 1] - starts.data()[row];
        for (uint64_t i = entrant_starts.data()[row]; ids == IdKind::text && i < entrant_starts.data()[row + 1]; ++i)
            room += offsets.data()[items.data()[i] + 1] - offsets.data()[items.data()[i]];
    }
    out_starts.data()[n] = room;
    auto out = make_array<uint8_t>({room});
    auto sizes = make_array<uint64_t>({n});
    auto states = make_array<uint8_t>({n});
    auto last = make_array<float>({n});
    const InsertJob job{data.data(), starts.data(), {entrant_starts.data(), items.data(), scores.data()},
                        {ids, numbers.data(), offsets.data(), reinterpret_cast<const char*>(texts.data())},
                        k, out.data(), out_starts.data()};
    {
        nb::gil_scoped_release released;
        for_row_ranges(n, threads, [&] {
            return [&](size_t begin, size_t end) {
                for (size_t row = begin; row < end; ++row)
                    states.data()[row] =
                        static_cast<uint8_t>(insert_list(job, row, sizes.data()[row], last.data()[row]));
            };
        });
    }
    return nb::make_tuple(out, out_starts, sizes, states, last);
}

template <class T> using Target = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

void require_rows(const Array<int64_t>& rows, size_t held, const std::string& what) {
    require_aligned(rows, sizeof(int64_t), "rows");
    for (size_t i = 0; i < rows.size(); ++i)
        require(rows.data()[i] >= 0 && static_cast<uint64_t>(rows.data()[i]) < held, what);
}

// Updates the lists at the rows `chosen`, and writes list i into row rows[i] of the targets, whose other rows stay.
void renew_lists(Matrix<int32_t> positions, Matrix<float> scores, Array<int64_t> chosen, Array<float> bounds,
                 Array<int64_t> edges, Array<int32_t> now, Matrix<int32_t> fresh_positions, Matrix<float> fresh_scores,
                 Array<int64_t> rows, Target<int32_t> new_positions, Target<float> new_scores, Target<float> new_bounds,
                 Target<int64_t> new_edges, size_t threads) {
    const size_t n = chosen.size(), width = positions.shape(1);
    require(width >= 1, "renew_lists: lists have no slots");
    require(scores.shape(0) == positions.shape(0) && scores.shape(1) == width, "renew_lists: scores have another shape");
    require_rows(chosen, positions.shape(0), "renew_lists: there are no such rows of lists");
    require(fresh_positions.shape(0) == n, "renew_lists: there are other lists of new items");
    require(fresh_scores.shape(0) == n && fresh_scores.shape(1) == fresh_positions.shape(1),
            "renew_lists: scores of new items have another shape");
    require_size(bounds, n, "bounds");
    require_size(edges, n, "edges");
    require_size(rows, n, "rows");
    const size_t room = new_bounds.size();
    require(new_positions.size() == product(room, width) && new_scores.size() == product(room, width) &&
                new_edges.size() == room, "renew_lists: the targets have other shapes");
    for (size_t row = 0; row < n; ++row)  // two threads may not write one row
        require(rows.data()[row] < static_cast<int64_t>(room) && rows.data()[row] > (row ? rows.data()[row - 1] : -1),
                "renew_lists: rows do not ascend below the end of the targets");
    for (const void* data : {static_cast<const void*>(positions.data()), static_cast<const void*>(scores.data()),
                             static_cast<const void*>(now.data()), static_cast<const void*>(fresh_positions.data()),
                             static_cast<const void*>(fresh_scores.data()), static_cast<const void*>(new_positions.data()),
                             static_cast<const void*>(new_scores.data()), static_cast<const void*>(new_bounds.data())})
        require(reinterpret_cast<uintptr_t>(data) % sizeof(float) == 0, "renew_lists: an array is not aligned; pass a copy");
    require_aligned(new_edges, sizeof(int64_t), "new_edges");
    // Copies: a target may share its memory with the row numbers, and would change them after they were checked.
    const std::vector<int64_t> from(chosen.data(), chosen.data() + n), to(rows.data(), rows.data() + n);
    const RenewJob job{{positions.data(), scores.data(), width}, from.data(), bounds.data(), edges.data(), now.data(),
                       now.size(), {fresh_positions.data(), fresh_scores.data(), fresh_positions.shape(1)}, to.data(),
                       new_positions.data(), new_scores.data(), new_bounds.data(), new_edges.data()};
    nb::gil_scoped_release released;
    for_row_ranges(n, threads, [&] {
        return [&](size_t begin, size_t end) {
            for (size_t row = begin; row < end; ++row) renew_list(job, row);
        };
    });
}

// The number of slots of the lists at the rows `chosen` whose item stays.
nb::object count_slots_left(Matrix<int32_t> positions, Array<int64_t> chosen, Array<int32_t> now, size_t threads) {
    require_rows(chosen, positions.shape(0), "count_left: there are no such rows of lists");
    require_aligned(positions, sizeof(int32_t), "positions");
    require_aligned(now, sizeof(int32_t), "now");
    auto counts = make_array<int64_t>({chosen.size()});
    {
        nb::gil_scoped_release released;
        for_row_ranges(chosen.size(), threads, [&] {
            return [&](size_t begin, size_t end) {
                const size_t width = positions.shape(1);
                for (size_t i = begin; i < end; ++i)
                    counts.data()[i] = count_left(positions.data() + static_cast<size_t>(chosen.data()[i]) * width, width,
                                                  now.data(), now.size());
            };
        });
    }
    return nb::cast(counts);
}

SortedTexts texts_of(const Array<int64_t>& offsets, const Array<uint8_t>& bytes, const char* name) {
    require_starts(offsets, bytes.size(), name);
    return {offsets.data(), reinterpret_cast<const char*>(bytes.data()), offsets.size() - 1};
}

// The position of each ascending text among others, -1 for none.
nb::object match_sorted_texts(Array<int64_t> offsets, Array<uint8_t> bytes, Array<int64_t> other_offsets,
                              Array<uint8_t> other_bytes) {
    const SortedTexts texts = texts_of(offsets, bytes, "offsets"), others = texts_of(other_offsets, other_bytes, "offsets");
    auto matches = make_array<int64_t>({texts.n});
    {
        nb::gil_scoped_release released;
        match_texts(texts, others, matches.data());
    }
    return nb::cast(matches);
}

// The texts at some positions, one after the other: where they begin, and their bytes. None if int32 cannot hold that.
nb::object gather_texts(Array<int64_t> offsets, Array<uint8_t> bytes, Array<int64_t> positions) {
    const SortedTexts texts = texts_of(offsets, bytes, "offsets");
    require_aligned(positions, sizeof(int64_t), "positions");
    const int64_t n_texts = static_cast<int64_t>(texts.n);
    for (size_t i = 0; i < positions.size(); ++i)
        require(positions.data()[i] >= 0 && positions.data()[i] < n_texts, "gather_texts: there are no such texts");
    auto begins = make_array<int32_t>({positions.size() + 1});
    bool fits = false;
    {
        nb::gil_scoped_release released;
        fits = place_texts(texts, positions.data(), positions.size(), begins.data());
    }
    if (!fits) return nb::none();
    auto gathered = make_array<uint8_t>({static_cast<size_t>(begins.data()[positions.size()])});
    {
        nb::gil_scoped_release released;
        copy_texts(texts, positions.data(), positions.size(), reinterpret_cast<char*>(gathered.data()));
    }
    return nb::make_tuple(begins, gathered);
}

// Whether each row equals the other row at its match, by bytes; 0 for a match of -1.
nb::object equal_rows(Matrix<uint8_t> rows, Matrix<uint8_t> others, Array<int64_t> matches) {
    const size_t n = rows.shape(0), size = rows.shape(1);
    require(others.shape(1) == size, "equal_rows: rows have other sizes");
    require_size(matches, n, "matches");
    auto same = make_array<uint8_t>({n});
    for (size_t row = 0; row < n; ++row)
        require(matches.data()[row] >= -1 && matches.data()[row] < static_cast<int64_t>(others.shape(0)),
                "equal_rows: there are no such rows");
    {
        nb::gil_scoped_release released;
        for (size_t row = 0; row < n; ++row) {
            const int64_t match = matches.data()[row];
            same.data()[row] = match >= 0 && std::memcmp(rows.data() + row * size,
                                                         others.data() + static_cast<size_t>(match) * size, size) == 0;
        }
    }
    return nb::cast(same);
}

nb::object eligible_counts(const std::string& isa, const PackedArrays& packed, const RuleArrays& rules, size_t threads) {
    const KernelTable kernels = kernels_named(isa);
    rules.check(packed, packed.check().positions);
    auto counts = make_array<int64_t>({rules.n()});
    const Rule rule = rules.view();
    {
        nb::gil_scoped_release released;
        count_eligible(kernels, packed.view(), rule, rules.n(), threads, counts.data());
    }
    return nb::cast(counts);
}

nb::tuple join_arrays(const std::string& isa, int metric, AnyMatrix query_array, AnyMatrix item_array,
                      const QueryArrays& rounded, const PackedArrays& packed, std::optional<Array<double>> item_norms,
                      std::optional<Array<int64_t>> exclude, size_t k, size_t threads, size_t queries_per_job,
                      bool values_decide, const ProbeArrays* probe_arrays, const RuleArrays* rule_arrays,
                      const std::vector<CapArrays>& caps, float min_score, std::optional<Array<float>> thresholds,
                      double error_share, std::optional<nb::callable> progress) {
    const KernelTable kernels = kernels_named(isa);
    const Vectors queries = vectors_of(query_array), items = vectors_of(item_array);
    const Metric scored = metric_of(metric);
    require(queries.d == items.d, "join: queries and items differ in dimensions");
    require(queries.n == rounded.n(), "join: there are other codes than queries");
    require(rounded.width() == packed.width(), "join: codes of queries and items differ in width");
    const size_t asked = packed.check().positions;
    require(asked <= items.n, "join: the order asks for items that are not there");
    rounded.check();
    require(k >= 1 && k <= kMostSlots, "join: k is out of range");
    require(queries_per_job >= 1, "join: queries_per_job must be at least 1");
    require(error_share > 0 && error_share <= 1, "join: error_share must be above 0 and at most 1");
    if (exclude) require_size(exclude, queries.n, "exclude");
    if (thresholds) require_size(thresholds, queries.n, "thresholds");
    if (scored == Metric::cosine && !values_decide) require_size(item_norms, items.n, "item_norms");
    if (rule_arrays) {
        require(rule_arrays->n() == queries.n, "join: the rule is about other queries");
        rule_arrays->check(packed, asked);
    }
    for (const CapArrays& cap : caps) {
        require(cap.size() == items.n, "join: a cap is about other items");
        cap.check();
    }
    if (probe_arrays) probe_arrays->check(queries.n, packed);
    auto positions = make_array<int64_t>({queries.n, k});
    auto scores = make_array<float>({queries.n, k});
    // No larger than can be used: workers make room for so many queries, and number pairs of them and blocks by 32 bits.
    queries_per_job = std::min({queries_per_job, std::max<size_t>(queries.n, 1),
                                std::max<size_t>(kNoItem / (packed.blocks() + 1), 1)});
    JoinJob job{scored, queries, items, rounded.view(), packed.view(),
                item_norms ? item_norms->data() : nullptr, exclude ? exclude->data() : nullptr, k, threads,
                queries_per_job, values_decide, nullptr, {}, min_score,
                thresholds ? thresholds->data() : nullptr, error_share};
    Rule rule;
    if (rule_arrays) {
        rule = rule_arrays->view();
        job.rule = &rule;
    }
    for (const CapArrays& cap : caps) job.caps.push_back(cap.view());
    RoundedQueries for_cells;
    std::optional<Probes> probes;
    if (probe_arrays) {
        for_cells = probe_arrays->rounded.view();
        probes = probe_arrays->view(&for_cells);
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

void require_strip(size_t items) {
    require(items > 0 && items <= kStripItems && items % kTileItems == 0,
            "a strip holds 16, 32, 48 or 64 items, got " + std::to_string(items));
}

// Products done by one of the ceilings' loops, 0 where the instruction set has none.
double ceiling(const std::string& isa, int loop, size_t rounds) {
    kernels_named(isa);  // throws where it cannot run
    require(loop >= 0 && loop <= 3, "ceiling: no loop has this number");
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
        .def(nb::init<Array<uint8_t>, Array<float>, std::optional<Array<float>>, Array<uint32_t>, Array<uint64_t>,
                      Array<double>, Array<double>, Array<double>, size_t>(),
             nb::arg("codes"), nb::arg("scales"), nb::arg("offsets").none(), nb::arg("order"), nb::arg("block_tiles"),
             nb::arg("block_norms"), nb::arg("block_residuals"), nb::arg("block_offsets"), nb::arg("width"));
    nb::class_<QueryArrays>(m, "QueryArrays")
        .def(nb::init<Matrix<int8_t>, Array<int32_t>, Array<double>, Array<double>, Array<double>,
                      std::optional<Array<uint32_t>>>(),
             nb::arg("codes"), nb::arg("starts"), nb::arg("scales"), nb::arg("residuals"), nb::arg("norms"),
             nb::arg("order") = nb::none());
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
            LeafArrays leaf{kind, negated, codes, low, high, block_low, block_high, item_words, query_words,
                            block_words, words, item_starts, query_starts, item_values, query_values};
            leaf.check_contents();
            new (self) LeafArrays(std::move(leaf));
        }, nb::arg("kind"), nb::arg("negated") = false, nb::arg("codes") = nb::none(), nb::arg("low") = nb::none(),
           nb::arg("high") = nb::none(), nb::arg("block_low") = nb::none(), nb::arg("block_high") = nb::none(),
           nb::arg("item_words") = nb::none(), nb::arg("query_words") = nb::none(), nb::arg("block_words") = nb::none(),
           nb::arg("words") = 0, nb::arg("item_starts") = nb::none(), nb::arg("query_starts") = nb::none(),
           nb::arg("item_values") = nb::none(), nb::arg("query_values") = nb::none());
    nb::class_<RuleArrays>(m, "RuleArrays")
        .def(nb::init<std::vector<LeafArrays>, const StepList&, const StepList&, Array<uint8_t>, size_t>());
    nb::class_<CapArrays>(m, "CapArrays").def(nb::init<Array<int32_t>, size_t, uint32_t>());
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
    m.def("nearest_centres", &nearest_centres, nb::arg("isa"), nb::arg("codes"), nb::arg("scales"), nb::arg("levels"),
          nb::arg("rows"), nb::arg("centres"), nb::arg("tops").none(), nb::arg("probes"), nb::arg("threads"));
    m.def("centre_values", &value_centres);
    m.def("repack", &repack);
    m.def("insert_candidates", &insert_candidates);
    m.def("renew_lists", &renew_lists);
    m.def("count_left", &count_slots_left);
    m.def("match_sorted_texts", &match_sorted_texts);
    m.def("gather_texts", &gather_texts);
    m.def("equal_rows", &equal_rows);
    m.def("score_lists", &score_lists);
    m.def("join", &join_arrays, nb::arg("isa"), nb::arg("metric"), nb::arg("queries"), nb::arg("items"),
          nb::arg("rounded"), nb::arg("packed"), nb::arg("item_norms").none(), nb::arg("exclude").none(), nb::arg("k"),
          nb::arg("threads"), nb::arg("queries_per_job"), nb::arg("values_decide"),
          nb::arg("probes").none(), nb::arg("rule").none(), nb::arg("caps"), nb::arg("min_score"),
          nb::arg("thresholds").none(), nb::arg("error_share"),
          nb::arg("progress").none());
    m.def("eligible_counts", &eligible_counts);
    m.def("interval_masks", [](const std::string& isa, Array<int32_t> codes, Array<int32_t> low, Array<int32_t> high) {
        require_strip(codes.shape(0));
        require_aligned(codes, sizeof(int32_t), "codes");
        require_size(low, high.shape(0), "low");
        require_size(high, low.shape(0), "high");
        auto masks = make_array<uint64_t>({low.shape(0)});
        kernels_named(isa).interval_masks(codes.data(), codes.shape(0), low.data(), high.data(), low.shape(0),
                                          masks.data());
        return masks;
    });
    m.def("overlap_masks", [](const std::string& isa, Matrix<uint64_t> item_words, Matrix<uint64_t> query_words) {
        const size_t items = item_words.shape(1), words = item_words.shape(0);
        require_strip(items);
        require(query_words.shape(1) == words, "overlap_masks: items and queries differ in words");
        require_aligned(item_words, sizeof(uint64_t), "item_words");
        require_aligned(query_words, sizeof(uint64_t), "query_words");
        auto masks = make_array<uint64_t>({query_words.shape(0)});
        kernels_named(isa).overlap_masks(item_words.data(), items, items, query_words.data(), words,
                                         query_words.shape(0), masks.data());
        return masks;
    });
}
