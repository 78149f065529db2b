// Attention over int8 pools at one level (see attention8.h), and the writing of such pools.
#include "attention8.h"

#include "attention_parts.h"
#include "transform.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

const float LEVELS = 32767.0f;      // of a weight: 512 of them times values of 127 are below 2^31
const float LEAST_WEIGHT = 1e-30f;  // below it a row's weights count as none

struct Room8 {
    std::int8_t* queries;    // [16][dim]
    float* scores;           // [16][SPLIT_KEYS], by position
    float* tree;             // [16][tree_stride], by virtual index
    float* key_scale;        // [SPLIT_KEYS]
    float* value_scale;      // [SPLIT_KEYS]
    std::uint8_t* high;      // [16][code_stride]: weights of shared positions, then of the tree's virtual indices
    std::uint8_t* low;
    std::int32_t* sums;      // [2][16][dim], and as much again for the next tiles' sums
    std::int64_t tree_stride, code_stride;

    Room8(float* memory, std::int64_t dim, std::int64_t rows) {
        tree_stride = (rows / TILE_KEYS + 2) * TILE_KEYS;
        code_stride = SPLIT_KEYS + tree_stride;
        scores = memory;
        tree = scores + QUERIES8 * SPLIT_KEYS;
        key_scale = tree + QUERIES8 * tree_stride;
        value_scale = key_scale + SPLIT_KEYS;
        sums = reinterpret_cast<std::int32_t*>(value_scale + SPLIT_KEYS);
        high = reinterpret_cast<std::uint8_t*>(sums + 4 * QUERIES8 * dim);
        low = high + QUERIES8 * code_stride;
        queries = reinterpret_cast<std::int8_t*>(low + QUERIES8 * code_stride);
    }
};

// The tiles that a block of queries reads in one split.
struct Tiles {
    std::int64_t first, shared;      // shared tiles [first, first + shared)
    std::int64_t tree_first, tree;   // tree tiles
    std::int64_t count() const { return shared + tree; }
    std::int64_t at(std::int64_t index) const { return index < shared ? first + index : tree_first + index - shared; }
};

const std::int64_t CHUNK_TILES = 16;

INLINE Floats load_bf16(const std::uint16_t* from) {
    Floats out;
    EACH(i) out.part[i] = part_load(from + i * WIDTH);
    return out;
}

INLINE float from_bf16(std::uint16_t value) {
    const std::uint32_t word = static_cast<std::uint32_t>(value) << 16;
    float out;
    __builtin_memcpy(&out, &word, 4);
    return out;
}

INLINE Floats load_sums(const float* from) {  // int32 that lie where floats will
    Floats out;
    EACH(i) out.part[i] = part_convert(*reinterpret_cast<const LooseIntPart*>(from + i * WIDTH));
    return out;
}

INLINE Floats combined(const std::int32_t* high, const std::int32_t* low) {
    Floats out;
    EACH(i) {
        const IntPart upper = *reinterpret_cast<const LooseIntPart*>(high + i * WIDTH), lower = *reinterpret_cast<const LooseIntPart*>(low + i * WIDTH);
        out.part[i] = part_convert(upper * 256 + lower);
    }
    return out;
}

INLINE float sum_at(const float* from) {
    std::int32_t out;
    __builtin_memcpy(&out, from, 4);
    return static_cast<float>(out);
}

// Integer scores of all tiles: shared ones to `scores`, those of the tree to `tree`.
void integer_scores(const Whereabouts& view, const Tiles& tiles, std::int64_t count, std::int64_t base, const Room8& room) {
    const std::int64_t dim = view.work.head_dim;
    const std::int8_t* some[CHUNK_TILES];
    for (std::int64_t index = 0; index < tiles.count();) {
        const bool tree = index >= tiles.shared;
        const std::int64_t end = tree ? tiles.count() : tiles.shared, left = end - index, number = left < CHUNK_TILES ? left : CHUNK_TILES;
        for (std::int64_t i = 0; i < number; ++i) {
            some[i] = view.work.cache->keys + view.tile_at(tiles.at(index + i)) * dim * TILE_KEYS;
        }
        float* to = tree ? room.tree + (index - tiles.shared) * TILE_KEYS : room.scores + tiles.at(index) * TILE_KEYS - base;
        view.work.products->scores(room.queries, count, dim, some, number, reinterpret_cast<std::int32_t*>(to),
                                   tree ? room.tree_stride : SPLIT_KEYS);
        index += number;
    }
}

// Adds q . R(p) b for positions [begin, end).
void add_bias(const AttentionWork& work, std::int64_t kv_head, const float* turns, std::int64_t base, std::int64_t begin,
              std::int64_t end, float* scores) {
    const Cache8& cache = *work.cache;
    const std::int32_t* chosen = cache.chosen + kv_head * cache.pairs;
    for (std::int64_t i = begin; i < end; i += 4 * LANES) {
        Floats sums[4];
        for (auto& sum : sums) sum = all(0.0f);
        for (std::int64_t pair = 0; pair < cache.pairs; ++pair) {
            const float* cosine = cache.cosine + chosen[pair] * cache.positions + i;
            const float* sine = cache.sine + chosen[pair] * cache.positions + i;
            const Floats one = all(turns[2 * pair]), other = all(turns[2 * pair + 1]);
            for (int v = 0; v < 4; ++v) {
                sums[v] = fused(other, load(sine + v * LANES), fused(one, load(cosine + v * LANES), sums[v]));
            }
        }
        for (int v = 0; v < 4; ++v) store(scores + i - base + v * LANES, load(scores + i - base + v * LANES) + sums[v]);
    }
}

// Integer scores to float ones in order of position; the tree's come from where its nodes lie.
void place_scores(const Whereabouts& view, const Seen& seen, const Tiles& tiles, std::int64_t base, std::int64_t begin, std::int64_t end,
                  const float* tree, const float* key_scale, float* scores) {
    const AttentionWork& work = view.work;
    const std::int64_t query = (view.start + seen.row) * work.heads + seen.head;
    const float factor = work.queries->scale[query];
    const Floats factors = all(factor);
    const std::int64_t stop = (tiles.first + tiles.shared) * TILE_KEYS;
    for (std::int64_t i = begin; i < stop; i += LANES) {
        store(scores + i - base, load_sums(scores + i - base) * factors * load(key_scale + i - base));
    }
    const std::int32_t* path = work.paths + (view.start + seen.row) * work.path_stride;
    for (std::int64_t position = seen.low > view.shared ? seen.low : view.shared; position <= seen.high; ++position) {
        const std::int64_t index = path[position - view.shared];
        const float scale = from_bf16(work.cache->key_scale[view.tile_at(index / TILE_KEYS) * TILE_KEYS + index % TILE_KEYS]);
        scores[position - base] = sum_at(tree + index - tiles.tree_first * TILE_KEYS) * factor * scale;
    }
    if (work.cache->pairs > 0) {
        add_bias(work, view.unit.kv_head, work.queries->turns + query * 2 * work.cache->pairs, base, begin, end, scores);
    }
}

// Weights by position, times value scales, to 16-bit codes where the values lie. Returns what one step of the codes is worth.
float round_weights(const Whereabouts& view, const Seen& seen, const Tiles& tiles, std::int64_t base, std::int64_t begin,
                    std::int64_t end, const float* value_scale, float* weights, std::uint8_t* high, std::uint8_t* low) {
    const AttentionWork& work = view.work;
    const std::int64_t stop = (tiles.first + tiles.shared) * TILE_KEYS;
    const std::int32_t* path = work.paths + (view.start + seen.row) * work.path_stride;
    const std::int64_t tree_low = seen.low > view.shared ? seen.low : view.shared;
    float seen_in_tree[TILE_KEYS] = {};  // the last shared tile also holds positions of the tree
    for (std::int64_t i = tree_low; i <= seen.high; ++i) {
        const std::int64_t index = path[i - view.shared];
        weights[i - base] *= from_bf16(work.cache->value_scale[view.tile_at(index / TILE_KEYS) * TILE_KEYS + index % TILE_KEYS]);
        if (i < stop) seen_in_tree[i % TILE_KEYS] = weights[i - base], weights[i - base] = 0.0f;
    }
    Floats top = all(0.0f);
    for (std::int64_t i = begin; i < stop; i += LANES) {
        const Floats weight = load(weights + i - base);
        const Floats product = where_less(all(0.0f), weight, weight * load(value_scale + i - base), all(0.0f));
        store(weights + i - base, product);
        top = most(top, product);
    }
    for (std::int64_t i = stop > begin ? stop : begin; i < end; i += LANES) top = most(top, load(weights + i - base));
    for (int i = 0; i < TILE_KEYS; i += LANES) top = most(top, load(seen_in_tree + i));
    const float found = highest(top), limit = found < LEAST_WEIGHT ? LEAST_WEIGHT : found;
    const Floats factor = all(LEVELS / limit);
    for (std::int64_t i = begin; i < stop; i += LANES) {
        const Ints code = bits(load(weights + i - base) * factor + all(ROUNDER));
        store_bytes(high + i - tiles.first * TILE_KEYS, shift_right(code, 8));
        store_bytes(low + i - tiles.first * TILE_KEYS, code);
    }
    if (tiles.tree > 0) {
        std::uint8_t* tree_high = high + tiles.shared * TILE_KEYS;
        std::uint8_t* tree_low_bytes = low + tiles.shared * TILE_KEYS;
        for (std::int64_t i = 0; i < tiles.tree * TILE_KEYS; ++i) tree_high[i] = tree_low_bytes[i] = 0;
        for (std::int64_t i = tree_low; i <= seen.high; ++i) {
            const float weight = i < stop ? seen_in_tree[i % TILE_KEYS] : weights[i - base];
            const float shifted = weight * (LEVELS / limit) + ROUNDER;
            std::int32_t code;
            __builtin_memcpy(&code, &shifted, 4);
            const std::int64_t at = path[i - view.shared] - tiles.tree_first * TILE_KEYS;
            tree_high[at] = static_cast<std::uint8_t>(code >> 8), tree_low_bytes[at] = static_cast<std::uint8_t>(code);
        }
    }
    return limit / LEVELS;
}

void mix_values(const Whereabouts& view, const Tiles& tiles, std::int64_t count, const Room8& room, const float* worth, float* values) {
    const std::int64_t dim = view.work.head_dim, size = QUERIES8 * dim;
    for (std::int64_t i = 0; i < count * dim; ++i) values[i] = 0.0f;
    const std::int8_t* some[CHUNK_TILES];
    // All codes of one query in one split belong to at most 512 positions, so the sum of all chunks would fit int32 as well; the
    // chunks of a wide tree are added here, exactly.
    std::int32_t* total = room.sums;
    bool first = true;
    for (std::int64_t index = 0; index < tiles.count(); index += CHUNK_TILES) {
        const std::int64_t left = tiles.count() - index, number = left < CHUNK_TILES ? left : CHUNK_TILES;
        for (std::int64_t i = 0; i < number; ++i) {
            some[i] = view.work.cache->values + view.tile_at(tiles.at(index + i)) * dim * TILE_KEYS;
        }
        std::int32_t* out = first ? total : total + 2 * size;
        view.work.products->mix(room.high + index * TILE_KEYS, room.low + index * TILE_KEYS, room.code_stride, count, dim, some, number, out);
        for (std::int64_t i = 0; !first && i < count * dim; ++i) total[i] += out[i], total[size + i] += out[size + i];
        first = false;
    }
    for (std::int64_t q = 0; q < count; ++q) {
        const Floats step = all(worth[q]);
        for (std::int64_t d = 0; d < dim; d += LANES) {
            store(values + q * dim + d, combined(total + q * dim + d, total + size + q * dim + d) * step);
        }
    }
}

void attend_block8(const Whereabouts& view, std::int64_t first, std::int64_t count, std::int64_t split, AttentionPart part, const Room8& room) {
    const AttentionWork& work = view.work;
    const std::int64_t dim = work.head_dim, base = split * SPLIT_KEYS;
    Seen seen[QUERIES8];
    std::int64_t low = INT64_MAX, high = -1, shared_high = -1;
    bool tree = false;
    for (std::int64_t q = 0; q < count; ++q) {
        seen[q] = look(view, view.unit.first + first + q, split);
        part.top[first + q] = NOTHING, part.total[first + q] = 0.0f;
        __builtin_memcpy(room.queries + q * dim, work.queries->codes + ((view.start + seen[q].row) * work.heads + seen[q].head) * dim,
                         static_cast<std::size_t>(dim));
        if (seen[q].high < seen[q].low) continue;
        low = seen[q].low < low ? seen[q].low : low;
        high = seen[q].high > high ? seen[q].high : high;
        shared_high = seen[q].shared_high > shared_high ? seen[q].shared_high : shared_high;
        tree = tree || seen[q].tree();
    }
    if (high < low) {
        for (std::int64_t i = 0; i < count * dim; ++i) part.values[first * dim + i] = 0.0f;
        return;
    }
    const std::int64_t begin = low / TILE_KEYS * TILE_KEYS, end = (high / TILE_KEYS + 1) * TILE_KEYS;
    Tiles tiles = {begin / TILE_KEYS, shared_high < begin ? 0 : shared_high / TILE_KEYS - begin / TILE_KEYS + 1, view.shared / TILE_KEYS, 0};
    if (tree) tiles.tree = (view.context + view.rows - 1) / TILE_KEYS - tiles.tree_first + 1;
    for (std::int64_t tile = tiles.first; tile < tiles.first + tiles.shared; ++tile) {
        const std::int64_t from = view.tile_at(tile) * TILE_KEYS, to = tile * TILE_KEYS - base;
        for (std::int64_t i = 0; i < TILE_KEYS; i += LANES) {
            store(room.key_scale + to + i, load_bf16(work.cache->key_scale + from + i));
            store(room.value_scale + to + i, load_bf16(work.cache->value_scale + from + i));
        }
    }
    integer_scores(view, tiles, count, base, room);
    float worth[QUERIES8];
    for (std::int64_t q = 0; q < count; ++q) {
        float* scores = room.scores + q * SPLIT_KEYS;
        place_scores(view, seen[q], tiles, base, begin, end, room.tree + q * room.tree_stride, room.key_scale, scores);
        weigh(work, seen[q], base, begin, end, scores, part.top + first + q, part.total + first + q);
        worth[q] = round_weights(view, seen[q], tiles, base, begin, end, room.value_scale, scores, room.high + q * room.code_stride,
                                 room.low + q * room.code_stride);
    }
    mix_values(view, tiles, count, room, worth, part.values + first * dim);
}

std::int64_t hadamard_block(std::int64_t dim) { return dim & -dim; }

// Codes of one head's row; returns its scale, bf16 where it will be stored as such (rounded up, so that no code leaves int8).
float round_head(float* x, std::int64_t dim, bool brain_float, std::int8_t* codes) {
    const std::int64_t block = hadamard_block(dim);
    transform(x, dim, block);
    const Floats length = all(1.0f / std::sqrt(static_cast<float>(block)));
    Floats top = all(0.0f), nothing = all(0.0f);
    for (std::int64_t i = 0; i < dim; i += LANES) {
        const Floats value = load(x + i) * length;
        store(x + i, value);
        top = most(top, magnitude(value));
        nothing = nothing + value * all(0.0f);
    }
    if (const float none = sum(nothing); none != 0.0f) {  // NaN or an infinity: let what comes of it be seen to be none
        for (std::int64_t i = 0; i < dim; ++i) codes[i] = 0;
        return none;
    }
    const float limit = highest(top);
    float scale = (limit > FLT_MIN * 65536.0f ? (limit < FLT_MAX / 256.0f ? limit : FLT_MAX / 256.0f) : FLT_MIN * 65536.0f) / 127.0f;
    if (brain_float) {
        std::uint32_t word;
        __builtin_memcpy(&word, &scale, 4);
        word = (word + 0xffffu) & 0xffff0000u;
        __builtin_memcpy(&scale, &word, 4);
    }
    const Floats factor = all(1.0f / scale);
    for (std::int64_t i = 0; i < dim; i += LANES) {
        // The low byte of ROUNDER's own bits is 0.
        store_bytes(codes + i, bits(least(most(load(x + i) * factor, all(-127.0f)), all(127.0f)) + all(ROUNDER)));
    }
    return scale;
}

std::uint16_t bf16_bits(float value) {
    std::uint32_t word;
    __builtin_memcpy(&word, &value, 4);
    return static_cast<std::uint16_t>(word >> 16);
}

// Query codes, their scale, and the factors of the bias's cosines and sines.
void make_query(const Rotary8& work, std::int64_t row, std::int64_t head, float* turned) {
    const std::int64_t dim = work.head_dim, half = dim / 2, at = row * work.heads + head, kv_head = head / (work.heads / work.kv_heads);
    const Cache8& cache = work.cache;
    const float* bias = cache.key_bias == nullptr ? nullptr : cache.key_bias + kv_head * dim;
    for (std::int64_t pair = 0; pair < cache.pairs; ++pair) {
        const std::int64_t i = cache.chosen[kv_head * cache.pairs + pair];
        float* turns = work.queries.turns + (at * cache.pairs + pair) * 2;
        turns[0] = (turned[i] * bias[i] + turned[i + half] * bias[i + half]) * work.scale;
        turns[1] = (turned[i + half] * bias[i] - turned[i] * bias[i + half]) * work.scale;
    }
    work.queries.scale[at] = round_head(turned, dim, false, work.queries.codes + at * dim) * work.scale;
}

void write_key_value(const Rotary8& work, std::int64_t row, std::int64_t head, float* key, float* value) {
    const std::int64_t dim = work.head_dim, offset = work.slots[row] % TILE_KEYS, at = work.slots[row] / TILE_KEYS * work.kv_heads + head;
    std::int8_t codes[512];
    work.cache.key_scale[at * TILE_KEYS + offset] = bf16_bits(round_head(key, dim, true, codes));
    std::int8_t* keys = work.cache.keys + at * dim * TILE_KEYS + offset * 4;
    for (std::int64_t i = 0; i < dim; i += 4) __builtin_memcpy(keys + i * TILE_KEYS, codes + i, 4);
    work.cache.value_scale[at * TILE_KEYS + offset] = bf16_bits(round_head(value, dim, true, codes));
    std::int8_t* values = work.cache.values + at * dim * TILE_KEYS + offset / 4 * dim * 4 + offset % 4;
    for (std::int64_t i = 0; i < dim; ++i) values[i * 4] = codes[i];
}

}  // namespace

void rotary_rows8(const Rotary8& work, std::int64_t first, std::int64_t last) {
    const std::int64_t dim = work.head_dim, width = (work.heads + 2 * work.kv_heads) * dim;
    float turned[512], value[512];
    for (std::int64_t row = first; row < last; ++row) {
        const float* x = work.qkv + row * width;
        const float* cosine = work.cosine + row * (dim / 2);
        const float* sine = work.sine + row * (dim / 2);
        for (std::int64_t head = 0; head < work.heads; ++head) {
            turn_head(x + head * dim, work.query_norm, work.eps, cosine, sine, dim, turned);
            make_query(work, row, head, turned);
        }
        for (std::int64_t head = 0; head < work.kv_heads; ++head) {
            const float* key = x + (work.heads + head) * dim;
            const float* from = x + (work.heads + work.kv_heads + head) * dim;
            for (std::int64_t i = 0; i < dim; ++i) value[i] = work.cache.pairs > 0 ? key[i] - work.cache.key_bias[head * dim + i] : key[i];
            turn_head(value, work.key_norm, work.eps, cosine, sine, dim, turned);
            for (std::int64_t i = 0; i < dim; ++i) value[i] = from[i];
            write_key_value(work, row, head, turned, value);
        }
    }
}

void attend_split8(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* memory) {
    const Whereabouts view(work, unit);
    const Room8 room(memory, work.head_dim, view.rows);
    for (std::int64_t first = 0; first < unit.count; first += QUERIES8) {
        attend_block8(view, first, unit.count - first < QUERIES8 ? unit.count - first : QUERIES8, split, part, room);
    }
}

// Values come back from the Hadamard basis here, once a row.
void finish_unit8(const AttentionWork& work, const AttentionUnit& unit, AttentionPart part) {
    const std::int64_t dim = work.head_dim, group = work.heads / work.kv_heads, block = hadamard_block(dim);
    const float length = 1.0f / std::sqrt(static_cast<float>(block));
    for (std::int64_t q = 0; q < unit.count; ++q) {
        const std::int64_t row = (unit.first + q) / group, head = unit.kv_head * group + (unit.first + q) % group;
        float* out = work.out + ((work.starts[unit.segment] + row) * work.heads + head) * dim;
        float* values = part.values + q * dim;
        transform(values, dim, block);
        const Floats factor = all(length / part.total[q]);
        for (std::int64_t d = 0; d < dim; d += LANES) store(out + d, load(values + d) * factor + all(0.0f));
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
