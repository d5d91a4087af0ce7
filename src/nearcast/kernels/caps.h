// Caps: at most so many items per group in a list, best first.
//
// Groups of several caps must be nested (each group of one lies within one group of the next). Then the lists that obey
// them are the independent sets of a matroid: taking greedily gives the best list, an item that better ones rule out stays
// ruled out whatever comes later, and k items that obey the caps bound the k-th score of the best list from below. So lists
// can be cut back as they grow, and stay exact. (Edmonds, "Matroids and the greedy algorithm", 1971.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nearcast {

struct Cap {
    const int32_t* groups;            // (m,) by position of the item; -1: in no group
    size_t n_groups;
    uint32_t most;
};

class CapCounter {
public:
    explicit CapCounter(const std::vector<Cap>& caps) : caps_(caps), taken_(caps.size()), last_(caps.size()) {
        for (size_t level = 0; level < caps.size(); ++level) {
            taken_[level].resize(caps[level].n_groups);
            last_[level].resize(caps[level].n_groups);
        }
    }

    // Takes an item, and returns true, if its groups have room. Items come best first.
    bool take(uint32_t position, double value) {
        for (size_t level = 0; level < caps_.size(); ++level) {
            const int32_t group = caps_[level].groups[position];
            if (group >= 0 && taken_[level][size_t(group)] >= caps_[level].most) return false;
        }
        for (size_t level = 0; level < caps_.size(); ++level) {
            const int32_t group = caps_[level].groups[position];
            if (group < 0) continue;
            if (taken_[level][size_t(group)]++ == 0) touched_.push_back({level, group});
            last_[level][size_t(group)] = value;
        }
        return true;
    }

    // Whether a group of the item is full of items whose values are all above this one.
    bool full_above(uint32_t position, double value) const {
        for (size_t level = 0; level < caps_.size(); ++level) {
            const int32_t group = caps_[level].groups[position];
            if (group >= 0 && taken_[level][size_t(group)] >= caps_[level].most && last_[level][size_t(group)] > value)
                return true;
        }
        return false;
    }

    void clear() {
        for (const Touched& t : touched_) taken_[t.level][size_t(t.group)] = 0;
        touched_.clear();
    }

private:
    struct Touched {
        size_t level;
        int32_t group;
    };
    const std::vector<Cap>& caps_;
    std::vector<std::vector<uint32_t>> taken_;
    std::vector<std::vector<double>> last_;      // value of the item that was taken last
    std::vector<Touched> touched_;
};

}  // namespace nearcast
