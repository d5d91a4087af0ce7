// Merges two sorted sequences: the slots of a list, which are many, and its entrants, which are few.

#include "insert_lists.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace nearcast {
namespace {

constexpr size_t kHead = 4;            // format and kind, reason, number of candidates
constexpr uint8_t kFormat = 1;

template <class T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}

struct Entrant {
    float score;
    uint32_t item;
};

// The entrants of a row, best first.
const std::vector<Entrant>& sort_entrants(const Entrants& entrants, size_t row) {
    static thread_local std::vector<Entrant> sorted;
    sorted.clear();
    for (uint64_t i = entrants.starts[row]; i < entrants.starts[row + 1]; ++i)
        sorted.push_back({entrants.scores[i], entrants.items[i]});
    std::sort(sorted.begin(), sorted.end(), [](const Entrant& a, const Entrant& b) {
        return a.score > b.score || (a.score == b.score && a.item < b.item);
    });
    return sorted;
}

// Ids of T bytes each behind the scores of a list.
template <class T>
struct Numbers {
    Numbers(const uint8_t* ids, const ItemIds& items, uint8_t* out) : ids_(ids), items_(items), out_(out) {}
    bool precedes(uint32_t item, size_t slot) const {
        return items_.numbers[item] < static_cast<int64_t>(load<T>(ids_ + slot * sizeof(T)));
    }
    void keep(size_t slot, size_t n, size_t to) {
        std::memcpy(out_ + to * sizeof(T), ids_ + slot * sizeof(T), n * sizeof(T));
    }
    void add(uint32_t item, size_t to) {
        const T id = static_cast<T>(items_.numbers[item]);
        std::memcpy(out_ + to * sizeof(T), &id, sizeof(T));
    }
    size_t finish(size_t k) const { return k * sizeof(T); }

private:
    const uint8_t* ids_;
    const ItemIds& items_;
    uint8_t* out_;
};

// Lengths of 2 bytes and then the texts.
struct Texts {
    Texts(const uint8_t* lengths, size_t n, const ItemIds& items, uint8_t* out)
        : lengths_(lengths), items_(items), out_(out), end_(out + 2 * n) {
        starts_.resize(n + 1);
        const uint8_t* at = lengths + 2 * n;
        for (size_t slot = 0; slot < n; ++slot) {
            starts_[slot] = at;
            at += load<uint16_t>(lengths + 2 * slot);
        }
        starts_[n] = at;
    }
    const uint8_t* end() const { return starts_.back(); }
    bool precedes(uint32_t item, size_t slot) const {
        const size_t length = items_.offsets[item + 1] - items_.offsets[item];
        const size_t other = starts_[slot + 1] - starts_[slot];
        const int order = std::memcmp(items_.texts + items_.offsets[item], starts_[slot], std::min(length, other));
        return order < 0 || (order == 0 && length < other);
    }
    void keep(size_t slot, size_t n, size_t to) {
        std::memcpy(out_ + 2 * to, lengths_ + 2 * slot, 2 * n);
        append(starts_[slot], starts_[slot + n] - starts_[slot]);
    }
    void add(uint32_t item, size_t to) {
        const uint64_t length = items_.offsets[item + 1] - items_.offsets[item];
        const uint16_t stored = static_cast<uint16_t>(length);
        std::memcpy(out_ + 2 * to, &stored, 2);
        append(items_.texts + items_.offsets[item], length);
    }
    size_t finish(size_t) const { return end_ - out_; }

private:
    void append(const void* text, size_t length) {
        std::memcpy(end_, text, length);
        end_ += length;
    }

    const uint8_t* lengths_;
    const ItemIds& items_;
    uint8_t* out_;
    uint8_t* end_;
    std::vector<const uint8_t*> starts_;
};

// The first slot in begin..end whose score is at most this one. Scores descend.
size_t first_not_above(const uint8_t* scores, size_t begin, size_t end, float score) {
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        if (load<float>(scores + 4 * middle) > score) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

template <class Ids>
Inserted merge(const InsertJob& job, size_t row, Ids ids, uint64_t& size, float& last) {
    const std::vector<Entrant>& entrants = sort_entrants(job.entrants, row);
    const uint8_t* list = job.data + job.starts[row];
    const uint8_t* scores = list + kHead;
    uint8_t* out = job.out + job.out_starts[row];
    std::memcpy(out, list, kHead);
    size_t slot = 0, to = 0, entered = 0;
    auto keep = [&](size_t n) {
        std::memcpy(out + kHead + 4 * to, scores + 4 * slot, 4 * n);
        ids.keep(slot, n, to);
        slot += n;
        to += n;
    };
    for (const Entrant& entrant : entrants) {
        const size_t stop = slot + job.k - to;  // slots from here on would not be kept
        size_t before = first_not_above(scores, slot, stop, entrant.score);
        while (before < stop && load<float>(scores + 4 * before) == entrant.score && !ids.precedes(entrant.item, before))
            ++before;
        keep(before - slot);
        if (to == job.k) break;
        std::memcpy(out + kHead + 4 * to, &entrant.score, 4);
        ids.add(entrant.item, to++);
        ++entered;
    }
    keep(job.k - to);
    last = load<float>(out + kHead + 4 * (job.k - 1));
    size = kHead + 4 * job.k + ids.finish(job.k);
    return entered > 0 ? Inserted::changed : Inserted::unchanged;
}

}  // namespace

Inserted insert_list(const InsertJob& job, size_t row, uint64_t& size, float& last) {
    const uint8_t* list = job.data + job.starts[row];
    const uint64_t held = job.starts[row + 1] - job.starts[row];
    const size_t k = job.k, width = job.ids.kind == IdKind::uint32 ? 4 : job.ids.kind == IdKind::int64 ? 8 : 2;
    size = 0;
    last = 0;
    if (held < kHead + (4 + width) * k || list[0] != 16 * kFormat + static_cast<int>(job.ids.kind) || list[1] != 0 ||
        load<uint16_t>(list + 2) != k)
        return Inserted::other_form;
    const uint8_t* ids = list + kHead + 4 * k;
    uint8_t* out = job.out + job.out_starts[row] + kHead + 4 * k;
    if (job.ids.kind == IdKind::text) {
        Texts texts(ids, k, job.ids, out);
        if (texts.end() != list + held) return Inserted::other_form;
        return merge<Texts&>(job, row, texts, size, last);
    }
    if (held != kHead + (4 + width) * k) return Inserted::other_form;
    if (job.ids.kind == IdKind::int64) return merge(job, row, Numbers<int64_t>(ids, job.ids, out), size, last);
    return merge(job, row, Numbers<uint32_t>(ids, job.ids, out), size, last);
}

}  // namespace nearcast
