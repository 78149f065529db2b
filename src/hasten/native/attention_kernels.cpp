// The attention kernels at one level. Generic code has no fused multiply-add, so its results differ from the others' in rounding;
// AVX2 and AVX-512 give the same bits.
#include "attention_parts.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

const int BLOCK = 6;  // queries that share each load of a key or value

// Parts of a key tile or value row held at once, so that COUNT times as many sums fit the registers.
template <int COUNT>
constexpr int VECTORS = WIDTH == 16 || COUNT <= 2 ? 4 : 2;

// Lines to ask for where so many elements are read, to be through with a tile when the present one is.
template <class Element>
constexpr int LINES(int elements) {
    return elements * sizeof(Element) > 64 ? static_cast<int>(elements * sizeof(Element) / 64) : 1;
}

// scores[q][64] of COUNT queries ([dim][COUNT], side by side) and one tile of keys.
template <int COUNT, class Element>
void tile_scores(const float* queries, const Element* keys, std::int64_t dim, float* scores, std::int64_t stride, Ahead ahead) {
    constexpr int SOME = VECTORS<COUNT>;
    for (std::int64_t from = 0; from < TILE_KEYS; from += SOME * WIDTH) {
        Part sums[COUNT][SOME] = {};
        for (std::int64_t d = 0; d < dim; ++d) {
            ahead.ask<LINES<Element>(SOME * WIDTH)>();
            Part key[SOME];
#pragma GCC unroll 4
            for (int v = 0; v < SOME; ++v) key[v] = part_load(keys + d * TILE_KEYS + from + v * WIDTH);
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q) {
                const Part one = part_all(queries[d * COUNT + q]);
#pragma GCC unroll 4
                for (int v = 0; v < SOME; ++v) sums[q][v] = part_fused(one, key[v], sums[q][v]);
            }
        }
        for (int q = 0; q < COUNT; ++q)
            for (int v = 0; v < SOME; ++v) part_store(scores + q * stride + from + v * WIDTH, sums[q][v]);
    }
}

// values[q][dim] += weights of `count` keys times their value rows, key after key.
template <int COUNT, int SOME, class Element>
INLINE void add_columns(const float* weights, std::int64_t stride, const Element* rows, std::int64_t count, std::int64_t dim, float* values,
                        Ahead& ahead) {
    Part sums[COUNT][SOME];
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < SOME; ++v) sums[q][v] = part_load(values + q * dim + v * WIDTH);
    for (std::int64_t key = 0; key < count; ++key) {
        ahead.ask<LINES<Element>(SOME * WIDTH)>();
        Part value[SOME];
#pragma GCC unroll 4
        for (int v = 0; v < SOME; ++v) value[v] = part_load(rows + key * dim + v * WIDTH);
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) {
            const Part one = part_all(weights[q * stride + key]);
#pragma GCC unroll 4
            for (int v = 0; v < SOME; ++v) sums[q][v] = part_fused(one, value[v], sums[q][v]);
        }
    }
    for (int q = 0; q < COUNT; ++q)
        for (int v = 0; v < SOME; ++v) part_store(values + q * dim + v * WIDTH, sums[q][v]);
}

template <int COUNT, class Element>
void add_values(const float* weights, std::int64_t stride, const Element* rows, std::int64_t count, std::int64_t dim, float* values,
                Ahead ahead = {}) {
    constexpr int SOME = VECTORS<COUNT>;
    std::int64_t d = 0;
    for (; d + SOME * WIDTH <= dim; d += SOME * WIDTH) {
        add_columns<COUNT, SOME>(weights, stride, rows + d, count, dim, values + d, ahead);
    }
    for (; d < dim; d += WIDTH) add_columns<COUNT, 1>(weights, stride, rows + d, count, dim, values + d, ahead);
}

// Scores of tree positions: computed where the nodes lie, then put in order of position.
template <int COUNT, class Element>
void tree_scores(const View<Element>& view, const Seen* seen, const float* queries, std::int64_t base, float* scores, float* room) {
    const std::int64_t first = view.shared / TILE_KEYS, last = (view.context + view.rows - 1) / TILE_KEYS;
    const std::int64_t stride = (last - first + 1) * TILE_KEYS;
    for (std::int64_t tile = first; tile <= last; ++tile) {
        tile_scores<COUNT>(queries, view.key_tile(tile), view.work.head_dim, room + (tile - first) * TILE_KEYS, stride, {});
    }
    for (int q = 0; q < COUNT; ++q) {
        const std::int32_t* path = view.work.paths + (view.start + seen[q].row) * view.work.path_stride;
        const std::int64_t low = seen[q].low > view.shared ? seen[q].low : view.shared;
        for (std::int64_t position = low; position <= seen[q].high; ++position) {
            scores[q * SPLIT_KEYS + position - base] = room[q * stride + path[position - view.shared] - first * TILE_KEYS];
        }
    }
}

template <class Element>
void add_tree_values(const View<Element>& view, const Seen& seen, std::int64_t base, const float* weights, float* values) {
    const std::int64_t dim = view.work.head_dim;
    const std::int32_t* path = view.work.paths + (view.start + seen.row) * view.work.path_stride;
    const std::int64_t low = seen.low > view.shared ? seen.low : view.shared;
    for (std::int64_t position = low; position <= seen.high; ++position) {
        const std::int64_t index = path[position - view.shared];
        add_values<1>(weights + position - base, SPLIT_KEYS, view.value_tile(index / TILE_KEYS) + index % TILE_KEYS * dim, 1, dim, values);
    }
}

// COUNT queries from `first` on (counted in the unit) over one split.
template <int COUNT, class Element>
void attend_block(const View<Element>& view, std::int64_t first, std::int64_t split, AttentionPart part, float* room) {
    const std::int64_t dim = view.work.head_dim, base = split * SPLIT_KEYS;
    float* queries = room;
    float* scores = queries + BLOCK * dim;
    float* tree_room = scores + BLOCK * SPLIT_KEYS;
    Seen seen[COUNT];
    std::int64_t low = INT64_MAX, high = -1, shared_high = -1;
    bool tree = false;
    for (int q = 0; q < COUNT; ++q) {
        seen[q] = look(view, view.unit.first + first + q, split);
        const float* from = view.work.query + ((view.start + seen[q].row) * view.work.heads + seen[q].head) * dim;
        for (std::int64_t d = 0; d < dim; ++d) queries[d * COUNT + q] = from[d] * view.work.scale;
        if (seen[q].high < seen[q].low) continue;
        low = seen[q].low < low ? seen[q].low : low;
        high = seen[q].high > high ? seen[q].high : high;
        shared_high = seen[q].shared_high > shared_high ? seen[q].shared_high : shared_high;
        tree = tree || seen[q].tree();
    }
    float* values = part.values + first * dim;
    for (std::int64_t i = 0; i < COUNT * dim; ++i) values[i] = 0.0f;
    for (int q = 0; q < COUNT; ++q) part.top[first + q] = NOTHING, part.total[first + q] = 0.0f;
    if (high < low) return;
    for (std::int64_t tile = low / TILE_KEYS; tile * TILE_KEYS <= shared_high; ++tile) {
        const bool last = (tile + 1) * TILE_KEYS > shared_high;
        const Ahead ahead(last ? view.value_tile(low / TILE_KEYS) : view.key_tile(tile + 1), dim);
        tile_scores<COUNT>(queries, view.key_tile(tile), dim, scores + tile * TILE_KEYS - base, SPLIT_KEYS, first == 0 ? ahead : Ahead());
    }
    if (tree) tree_scores<COUNT>(view, seen, queries, base, scores, tree_room);
    const std::int64_t begin = low / TILE_KEYS * TILE_KEYS, end = (high / TILE_KEYS + 1) * TILE_KEYS;
    for (int q = 0; q < COUNT; ++q) {
        weigh(view.work, seen[q], base, begin, end, scores + q * SPLIT_KEYS, part.top + first + q, part.total + first + q);
    }
    for (std::int64_t position = low; position <= shared_high;) {
        const std::int64_t tile = position / TILE_KEYS, next = (tile + 1) * TILE_KEYS;
        const std::int64_t stop = next <= shared_high ? next : shared_high + 1;
        const bool more = first == 0 && next <= shared_high;
        add_values<COUNT>(scores + position - base, SPLIT_KEYS, view.value_tile(tile) + position % TILE_KEYS * dim, stop - position, dim,
                          values, more ? Ahead(view.value_tile(tile + 1), dim) : Ahead());
        position = stop;
    }
    for (int q = 0; tree && q < COUNT; ++q) {
        add_tree_values(view, seen[q], base, scores + q * SPLIT_KEYS, values + q * dim);
    }
}

template <class Element>
void attend_blocks(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room) {
    const View<Element> view(work, unit);
    const std::int64_t blocks = (unit.count + BLOCK - 1) / BLOCK;
    for (std::int64_t index = 0; index < blocks; ++index) {
        const std::int64_t first = unit.count * index / blocks, count = unit.count * (index + 1) / blocks - first;
        switch (count) {
            case 1: attend_block<1>(view, first, split, part, room); break;
            case 2: attend_block<2>(view, first, split, part, room); break;
            case 3: attend_block<3>(view, first, split, part, room); break;
            case 4: attend_block<4>(view, first, split, part, room); break;
            case 5: attend_block<5>(view, first, split, part, room); break;
            default: attend_block<6>(view, first, split, part, room); break;
        }
    }
}

}  // namespace

void attend_split(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room) {
    if (work.element == FLOAT16) return attend_blocks<Half>(work, unit, split, part, room);
    if (work.element == BFLOAT16) return attend_blocks<std::uint16_t>(work, unit, split, part, room);
    return attend_blocks<float>(work, unit, split, part, room);
}

// `into` takes `from`, whose positions follow. An empty side changes no bit of the other: its factor is exactly 0, the other's 1.
void merge_parts(std::int64_t count, std::int64_t dim, AttentionPart into, AttentionPart from) {
    for (std::int64_t q = 0; q < count; ++q) {
        if (from.top[q] == NOTHING) continue;
        const float top = into.top[q] < from.top[q] ? from.top[q] : into.top[q];
        float lanes[LANES] = {into.top[q] - top, from.top[q] - top};
        store(lanes, exponential(load(lanes)));
        const Floats mine = all(lanes[0]), other = all(lanes[1]);
        into.top[q] = top;
        into.total[q] = into.total[q] * lanes[0] + from.total[q] * lanes[1];
        for (std::int64_t d = 0; d < dim; d += LANES) {
            store(into.values + q * dim + d, load(into.values + q * dim + d) * mine + load(from.values + q * dim + d) * other);
        }
    }
}

void finish_unit(const AttentionWork& work, const AttentionUnit& unit, AttentionPart part) {
    const std::int64_t dim = work.head_dim, group = work.heads / work.kv_heads;
    for (std::int64_t q = 0; q < unit.count; ++q) {
        const std::int64_t row = (unit.first + q) / group, head = unit.kv_head * group + (unit.first + q) % group;
        float* out = work.out + ((work.starts[unit.segment] + row) * work.heads + head) * dim;
        const Floats factor = all(1.0f / part.total[q]);
        // Adding 0 turns -0 into 0: which of the two a sum ends on may depend on how many zero weights it passed.
        for (std::int64_t d = 0; d < dim; d += LANES) store(out + d, load(part.values + q * dim + d) * factor + all(0.0f));
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
