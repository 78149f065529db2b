// What both attention kernels (float and int8 pools) share at one level: who sees what, and scores to weights.
#pragma once

#include "attention.h"

#include <cfloat>
#include <cmath>

#include "lanes.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

const float NOTHING = -INFINITY;

// Memory that will be read next, asked for a line at a time while something else is computed. Tiles of one sequence lie apart, and
// inside a tile the kernels go in strides, so the processor does not foresee them.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;

    template <class Element>
    Ahead(const Element* tile, std::int64_t dim) : at(reinterpret_cast<const char*>(tile)), end(at + dim * TILE_KEYS * sizeof(Element)) {}
    Ahead() = default;

    template <int LINES>
    INLINE void ask() {
        if (at >= end) return;
#pragma GCC unroll 4
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(at + line * 64);
        at += LINES * 64;
    }
};

// A unit's segment.
struct Whereabouts {
    const AttentionWork& work;
    const AttentionUnit& unit;
    std::int64_t group, start, context, shared, rows;  // shared: context + chain, the first position that belongs to the tree

    Whereabouts(const AttentionWork& w, const AttentionUnit& u)
        : work(w), unit(u), group(w.heads / w.kv_heads), start(w.starts[u.segment]), context(w.contexts[u.segment]),
          shared(context + w.chains[u.segment]), rows(w.starts[u.segment + 1] - start) {}

    // Which of the pool's [blocks][kv_heads] a tile of positions is.
    std::int64_t tile_at(std::int64_t tile) const {
        return work.tables[unit.segment * work.table_stride + tile] * work.kv_heads + unit.kv_head;
    }
};

// The same with a pool of floats.
template <class Element>
struct View : Whereabouts {
    View(const AttentionWork& w, const AttentionUnit& u) : Whereabouts(w, u) {}

    const Element* key_tile(std::int64_t tile) const { return static_cast<const Element*>(work.keys) + tile_at(tile) * work.head_dim * TILE_KEYS; }
    const Element* value_tile(std::int64_t tile) const {
        return static_cast<const Element*>(work.values) + tile_at(tile) * work.head_dim * TILE_KEYS;
    }
};

// One query of a block: where its row stands and which positions of the split it sees.
struct Seen {
    std::int64_t row, head, position;
    std::int64_t low, high;         // positions of this split that it sees: low to high, nothing if high < low
    std::int64_t shared_high;       // last of them that lies in the chain or context
    bool tree() const { return high > shared_high; }
};

// Scores by position to weights: soft cap, mask, subtract the maximum, exponential. Works on positions [begin, end) of the split,
// both multiples of 64; position `base` stands at scores[0].
inline void weigh(const AttentionWork& work, const Seen& seen, std::int64_t base, std::int64_t begin, std::int64_t end, float* scores,
           float* top, float* total) {
    *top = NOTHING;
    *total = 0.0f;
    const bool blind = seen.high < seen.low;
    const std::int64_t low = blind ? end : seen.low, high = blind ? end - 1 : seen.high;
    if (work.softcap != 0.0f) {
        const Floats cap = all(work.softcap);
        for (std::int64_t i = begin; i < end; i += LANES) store(scores + i - base, hyperbolic_tangent(load(scores + i - base) / cap) * cap);
    }
    for (std::int64_t i = begin; i < low; ++i) scores[i - base] = NOTHING;
    for (std::int64_t i = high + 1; i < end; ++i) scores[i - base] = NOTHING;
    Floats best = all(NOTHING);
    for (std::int64_t i = begin; i < end; i += LANES) best = most(best, load(scores + i - base));
    const float limit = highest(best);
    const Floats maximum = all(limit == NOTHING ? 0.0f : limit);
    Floats sums = all(0.0f), nothing = all(0.0f);
    for (std::int64_t i = begin; i < end; i += LANES) {
        const Floats score = load(scores + i - base), weight = exponential(score - maximum);
        // NaN where a score is none or infinite, which `exponential` hides.
        nothing = nothing + where_less(score, all(-FLT_MAX), all(0.0f), score) * all(0.0f);
        store(scores + i - base, weight);
        sums = sums + weight;
    }
    *top = limit;
    *total = sum(sums + nothing);
}

inline Seen look(const Whereabouts& view, std::int64_t query, std::int64_t split) {
    Seen seen;
    seen.row = query / view.group;
    seen.head = view.unit.kv_head * view.group + query % view.group;
    const std::int64_t depth = view.work.depths[view.start + seen.row];
    seen.position = depth == 0 ? view.context + seen.row : view.shared - 1 + depth;
    const std::int64_t begin = split * SPLIT_KEYS, end = begin + SPLIT_KEYS - 1, window = view.work.window;
    const std::int64_t oldest = window > 0 && seen.position >= window ? seen.position - window + 1 : 0;
    seen.low = oldest > begin ? oldest : begin;
    seen.high = seen.position < end ? seen.position : end;
    seen.shared_high = seen.high < view.shared - 1 ? seen.high : view.shared - 1;
    return seen;
}

}  // namespace
}  // namespace HASTEN_LEVEL
}  // namespace hasten
