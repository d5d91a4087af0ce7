#include "rule.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace nearcast {
namespace {

bool any_shared(const uint64_t* left, const uint64_t* right, size_t words) {
    for (size_t w = 0; w < words; ++w)
        if (left[w] & right[w]) return true;
    return false;
}

// Two ascending lists; the shorter one is searched for in the longer one where that is much longer.
bool any_shared(const int32_t* a, size_t n, const int32_t* b, size_t m) {
    if (n > m) {
        std::swap(a, b);
        std::swap(n, m);
    }
    if (n * 8 < m) {
        for (size_t i = 0; i < n; ++i)
            if (std::binary_search(b, b + m, a[i])) return true;
        return false;
    }
    for (size_t i = 0, j = 0; i < n && j < m;) {
        if (a[i] == b[j]) return true;
        if (a[i] < b[j]) ++i;
        else ++j;
    }
    return false;
}

// Evaluates a program over truth values; leaf_value tells a leaf's.
template <class LeafValue>
bool value_of(const RuleProgram& program, LeafValue leaf_value) {
    if (program.leaves_alone) {
        for (size_t leaf : program.leaves)
            if (!leaf_value(leaf)) return false;
        return true;
    }
    bool stack[kRuleDepth];
    size_t depth = 0;
    for (const RuleStep& step : program.steps) {
        if (step.kind == StepKind::leaf) {
            stack[depth++] = leaf_value(static_cast<size_t>(step.count));
            continue;
        }
        bool value = step.kind == StepKind::all;
        for (int32_t i = 0; i < step.count; ++i) {
            const bool part = stack[--depth];
            value = step.kind == StepKind::all ? value && part : value || part;
        }
        stack[depth++] = value;
    }
    return stack[0];
}

}  // namespace

RuleProgram make_program(std::vector<RuleStep> steps, size_t n_leaves) {
    RuleProgram program;
    size_t depth = 0;
    for (const RuleStep& step : steps) {
        if (step.count < 0) throw std::invalid_argument("rule: a step has a negative count");
        const size_t count = static_cast<size_t>(step.count);
        if (step.kind == StepKind::leaf) {
            if (count >= n_leaves) throw std::invalid_argument("rule: a step asks for a leaf that is not there");
            program.leaves.push_back(count);
            ++depth;
        } else if (step.kind == StepKind::all || step.kind == StepKind::any) {
            if (count > depth) throw std::invalid_argument("rule: a step combines more results than there are");
            depth = depth - count + 1;
            program.leaves_alone = program.leaves_alone && step.kind == StepKind::all;
        } else {
            throw std::invalid_argument("rule: a step is neither a leaf nor a combination");
        }
        program.depth = std::max(program.depth, depth);
        if (depth > kRuleDepth) throw std::invalid_argument("rule: the tree is too deep");
    }
    if (depth > 1 || (depth == 0 && !steps.empty())) throw std::invalid_argument("rule: the steps leave no single result");
    program.steps = std::move(steps);
    return program;
}

bool may_hold(const Rule& rule, size_t query, size_t block) {
    auto leaf_value = [&](size_t number) {
        const RuleLeaf& leaf = rule.leaves[number];
        if (leaf.kind == LeafKind::interval)
            return leaf.low[query] <= leaf.block_high[block] && leaf.high[query] >= leaf.block_low[block] &&
                   leaf.low[query] <= leaf.high[query];
        if (leaf.kind == LeafKind::overlap && !leaf.negated)
            return any_shared(leaf.query_words + query * leaf.words, leaf.block_words + block * leaf.words, leaf.words);
        return true;
    };
    return value_of(rule.dense, leaf_value) && value_of(rule.lazy, leaf_value);
}

bool holds(const Rule& rule, size_t query, size_t place, size_t position, bool dense_known) {
    auto leaf_value = [&](size_t number) {
        const RuleLeaf& leaf = rule.leaves[number];
        if (leaf.kind == LeafKind::interval) {
            const int32_t code = leaf.codes[place];
            return leaf.low[query] <= code && code <= leaf.high[query];
        }
        bool shares = false;
        if (leaf.kind == LeafKind::overlap) {
            const uint64_t* asked = leaf.query_words + query * leaf.words;
            for (size_t w = 0; w < leaf.words; ++w) shares |= (leaf.item_words[w * rule.places + place] & asked[w]) != 0;
        } else {
            const int64_t first = leaf.item_starts[position], begin = leaf.query_starts[query];
            shares = any_shared(leaf.item_values + first, size_t(leaf.item_starts[position + 1] - first),
                                leaf.query_values + begin, size_t(leaf.query_starts[query + 1] - begin));
        }
        return shares != leaf.negated;
    };
    return (dense_known || value_of(rule.dense, leaf_value)) && value_of(rule.lazy, leaf_value);
}

RuleMasks::RuleMasks(const KernelTable& kernels, const Rule& rule, size_t room)
    : kernels_(kernels), rule_(rule), room_(room), masked_(room), all_(room), low_(rule.leaves.size()), high_(rule.leaves.size()),
      words_(rule.leaves.size()) {
    for (size_t number : rule.dense.leaves) {
        if (rule.leaves[number].kind == LeafKind::interval) {
            low_[number].resize(room);
            high_[number].resize(room);
        } else {
            words_[number].resize(room * rule.leaves[number].words);
        }
    }
    stack_.assign(rule.dense.depth + 1, std::vector<uint64_t>(room));
}

void RuleMasks::take(const uint32_t* queries, size_t n, size_t padded) {
    n_ = 0;
    padded_ = padded;
    for (size_t row = 0; row < n; ++row)
        if (rule_.masked[queries[row]]) masked_[n_++] = static_cast<uint32_t>(row);
    any_ = n_ > 0;
    every_ = n_ == n;
    if (!any_) return;
    std::fill_n(all_.begin(), n, ~uint64_t(0));
    std::fill(all_.begin() + n, all_.begin() + padded, uint64_t(0));
    for (size_t number = 0; number < rule_.leaves.size(); ++number) {
        const RuleLeaf& leaf = rule_.leaves[number];
        if (!low_[number].empty())
            for (size_t i = 0; i < n_; ++i) {
                low_[number][i] = leaf.low[queries[masked_[i]]];
                high_[number][i] = leaf.high[queries[masked_[i]]];
            }
        if (!words_[number].empty())
            for (size_t i = 0; i < n_; ++i)
                std::copy_n(leaf.query_words + queries[masked_[i]] * leaf.words, leaf.words,
                            words_[number].data() + i * leaf.words);
    }
}

const uint64_t* RuleMasks::of(size_t first, size_t items) {
    size_t depth = 0;
    if (rule_.dense.steps.empty()) std::fill_n(stack_[0].begin(), n_, ~uint64_t(0));
    for (const RuleStep& step : rule_.dense.steps) {
        if (step.kind == StepKind::leaf) {
            const size_t number = static_cast<size_t>(step.count);
            leaf(rule_.leaves[number], number, first, items, stack_[depth++].data());
            continue;
        }
        const size_t parts = static_cast<size_t>(step.count), base = depth - parts;
        if (parts == 0) std::fill_n(stack_[base].begin(), n_, step.kind == StepKind::all ? ~uint64_t(0) : 0);
        uint64_t* into = stack_[base].data();
        for (size_t part = 1; part < parts; ++part) {
            const uint64_t* other = stack_[base + part].data();
            if (step.kind == StepKind::all)
                for (size_t row = 0; row < n_; ++row) into[row] &= other[row];
            else
                for (size_t row = 0; row < n_; ++row) into[row] |= other[row];
        }
        depth = base + 1;
    }
    uint64_t* masks = stack_[0].data();
    if (every_) {
        std::fill(masks + n_, masks + padded_, uint64_t(0));
        return masks;
    }
    for (size_t i = 0; i < n_; ++i) all_[masked_[i]] = masks[i];
    return all_.data();
}

void RuleMasks::leaf(const RuleLeaf& leaf, size_t number, size_t first, size_t items, uint64_t* out) {
    if (leaf.kind == LeafKind::interval) {
        kernels_.interval_masks(leaf.codes + first, items, low_[number].data(), high_[number].data(), n_, out);
        return;
    }
    kernels_.overlap_masks(leaf.item_words + first, rule_.places, items, words_[number].data(), leaf.words, n_, out);
    if (leaf.negated)
        for (size_t row = 0; row < n_; ++row) out[row] = ~out[row];
}

}  // namespace nearcast
