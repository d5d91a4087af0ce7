// Merges two sorted lists, best first; equal scores go to the smaller position.

#include "renew_lists.h"

#include <limits>

namespace nearcast {

void renew_list(const RenewJob& job, size_t row) {
    const size_t width = job.known.width, target = static_cast<size_t>(job.rows[row]);
    const size_t source = static_cast<size_t>(job.chosen[row]);
    const int32_t* known = job.known.positions + source * width;
    const int32_t* fresh = job.fresh.positions + row * job.fresh.width;
    const float* known_scores = job.known.scores + source * width;
    const float* fresh_scores = job.fresh.scores + row * job.fresh.width;
    int32_t* positions = job.positions + target * width;
    float* scores = job.scores + target * width;
    const float bound = job.bounds[row];
    const int64_t edge = job.edges[row];
    size_t mine = 0, theirs = 0, n = 0;
    int32_t position = -1;             // of the known item at `mine`
    auto find = [&] {                  // the next known item that stays; an empty slot is a large number, and none
        for (; mine < width; ++mine) {
            const uint32_t old = static_cast<uint32_t>(known[mine]);
            position = old < job.items ? job.now[old] : -1;
            if (position >= 0) return;
        }
    };
    find();
    while (n < width) {
        const bool more = theirs < job.fresh.width && fresh[theirs] >= 0;
        bool takes_fresh = more;
        if (more && mine < width)
            takes_fresh = fresh_scores[theirs] > known_scores[mine] ||
                          (fresh_scores[theirs] == known_scores[mine] && fresh[theirs] < position);
        if (!more && mine == width) break;
        const int32_t next = takes_fresh ? fresh[theirs] : position;
        const float score = takes_fresh ? fresh_scores[theirs] : known_scores[mine];
        if (!(score > bound || (score == bound && next < edge))) break;  // an unknown item may precede it
        positions[n] = next;
        scores[n++] = score;
        if (takes_fresh) {
            ++theirs;
        } else {
            ++mine;
            find();
        }
    }
    const bool full = n == width;
    job.new_bounds[target] = full ? scores[width - 1] : bound;
    job.new_edges[target] = full ? static_cast<int64_t>(positions[width - 1]) + 1 : edge;
    for (; n < width; ++n) {
        positions[n] = -1;
        scores[n] = -std::numeric_limits<float>::infinity();
    }
}

int64_t count_left(const int32_t* positions, size_t width, const int32_t* now, size_t items) {
    int64_t left = 0;
    for (size_t slot = 0; slot < width; ++slot) {
        const uint32_t old = static_cast<uint32_t>(positions[slot]);
        left += old < items && now[old] >= 0;
    }
    return left;
}

}  // namespace nearcast
