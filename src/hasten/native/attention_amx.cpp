// Attention over 16-bit pools with AMX bf16: 16 queries x 16 keys (or dimensions) x 32 terms an instruction.
//
// A float is two bf16 here, its upper half and what that leaves out: of a pool's element that is all of it, of queries and weights about
// 17 bits. Products of two of the latter are left out. Every score and every sum of values takes its terms in the same order
// whoever is in the tile beside it, so a row's bits are its own here, too; see attention.h. Sums of values go by 32 positions; a tree row's
// are gathered from where its path lies.
#include "attention.h"

#if defined(__x86_64__)
#include "attention_parts.h"
#include "tiles.h"

namespace hasten {
namespace {

using avx512::Ahead;
using avx512::Seen;
using avx512::Whereabouts;

const std::int64_t BLOCK = 16, TERMS = 32, LINE = 16;  // queries of a tile; terms and columns of a product
const std::int64_t TILE = 512;                         // bf16 of a tile
const std::int64_t SCORES = SPLIT_KEYS + LINE;         // from one query's scores to the next one's: no multiple of a page

// Tiles: 0-3 sums, 4-5 queries or weights, 6-7 keys or values.
void configure(std::int64_t count) {
    const auto some = static_cast<std::uint8_t>(count);
    configure_tiles({some, some, some, some, some, some, 16, 16});
}

// What one split of a unit is worked out in, all of it 64-byte aligned.
struct Room {
    std::uint16_t* queries;  // [blocks][dim / 32] of two tiles
    std::uint16_t* pairs;    // keys or values of 64 positions: [terms / 32][columns / 16] of two tiles
    std::uint16_t* weights;  // [2] of two tiles
    float* scores;           // [queries][SCORES]
    float* tree;             // [16][positions]
};

const __m512i UPPER = _mm512_set1_epi32(static_cast<int>(0xffff0000u));

inline __m512 upper_of(__m512 x) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), UPPER)); }
inline __m512 rest_of(__m512 x) { return _mm512_sub_ps(x, upper_of(x)); }
// The nearest number that is its own upper half.
inline __m512 nearest_of(__m512 x) {
    return upper_of(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))));
}
inline __m512i side_by_side(__m512 even, __m512 odd) {
    return _mm512_ternarylogic_epi32(UPPER, _mm512_castps_si512(odd), _mm512_srli_epi32(_mm512_castps_si512(even), 16), 0xca);
}

// Sixteen numbers twice: the upper halves, and a tile behind them what they leave out.
inline void put_pairs(__m512 even, __m512 odd, bool whole, std::uint16_t* to) {
    _mm512_store_si512(to, side_by_side(even, odd));
    if (!whole) _mm512_store_si512(to + TILE, side_by_side(rest_of(even), rest_of(odd)));
}

template <class Element>
constexpr bool WHOLE = false;  // whether the upper half is all there is
template <>
constexpr bool WHOLE<std::uint16_t> = true;

// Right sides of products over 32 `rows`, two by two, `width` numbers of each; a row that is null is zeros.
template <class Element>
void pair_rows(const Element* const* rows, std::int64_t width, std::uint16_t* to, Ahead& ahead) {
    for (std::int64_t pair = 0; pair < LINE; ++pair) {
        const Element *even = rows[2 * pair], *odd = rows[2 * pair + 1];
        for (std::int64_t at = 0; at < width; at += LINE) {
            const __m512 first = even == nullptr ? _mm512_setzero_ps() : avx512::part_load(even + at);
            ahead.ask<1>();
            const __m512 second = odd == nullptr ? _mm512_setzero_ps() : avx512::part_load(odd + at);
            put_pairs(first, second, WHOLE<Element>, to + at / LINE * 2 * TILE + pair * TERMS);
        }
    }
}

// Left sides: 32 numbers of one row, the nearest upper halves and, a tile behind them, the nearest of what these leave out.
inline void put_left(const float* from, float scale, std::uint16_t* to) {
    for (std::int64_t i = 0; i < TERMS; i += 16, to += 16) {
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(scale)), near = nearest_of(x);
        const auto put = [](__m512 upper, std::uint16_t* at) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(upper), 16)));
        };
        put(near, to);
        put(nearest_of(_mm512_sub_ps(x, near)), to + TILE);
    }
}

// Sums 0 to 3 += the left side in tile `left` times four right sides, `from` on. Each sum waits for its last product three others long.
#define ADD_FOUR(left, from)                   \
    _tile_loadd(6, from, 64);                  \
    _tile_dpbf16ps(0, left, 6);                \
    _tile_loadd(7, (from) + 2 * TILE, 64);     \
    _tile_dpbf16ps(1, left, 7);                \
    _tile_loadd(6, (from) + 4 * TILE, 64);     \
    _tile_dpbf16ps(2, left, 6);                \
    _tile_loadd(7, (from) + 6 * TILE, 64);     \
    _tile_dpbf16ps(3, left, 7);

// Sums 0 to 3 += left (two tiles) times four right sides, one behind the other.
template <bool ALL>
inline void add_products(const std::uint16_t* left, const std::uint16_t* right) {
    _tile_loadd(4, left, 64);
    _tile_loadd(5, left + TILE, 64);
    ADD_FOUR(4, right)
    ADD_FOUR(5, right)
    if (!ALL) {
        ADD_FOUR(4, right + TILE)
    }
}

#undef ADD_FOUR

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

inline void load_sums(const float* from, std::int64_t stride) {
    const std::size_t line = static_cast<std::size_t>(stride) * 4;
    _tile_loadd(0, from, line);
    _tile_loadd(1, from + 16, line);
    _tile_loadd(2, from + 32, line);
    _tile_loadd(3, from + 48, line);
}

inline void store_sums(float* to, std::int64_t stride) {
    const std::size_t line = static_cast<std::size_t>(stride) * 4;
    _tile_stored(0, to, line);
    _tile_stored(1, to + 16, line);
    _tile_stored(2, to + 32, line);
    _tile_stored(3, to + 48, line);
}

// Up to 16 queries of a unit.
struct Block {
    Seen seen[BLOCK];
    std::int64_t first = 0, count = 0;  // in the unit
    std::int64_t low = INT64_MAX, high = -1, shared_high = -1;
    bool tree = false;

    bool reaches(std::int64_t tile) const { return low < (tile + 1) * TILE_KEYS && tile * TILE_KEYS <= shared_high; }
    std::int64_t begin() const { return low / TILE_KEYS * TILE_KEYS; }
    std::int64_t end() const { return (high / TILE_KEYS + 1) * TILE_KEYS; }
};

// One unit over one split.
template <class Element>
struct Attending {
    const AttentionWork& work;
    const AttentionUnit& unit;
    const avx512::View<Element> view;
    const AttentionPart part;
    const Room room;
    const std::int64_t dim = work.head_dim, base, blocks = (unit.count + BLOCK - 1) / BLOCK;
    const std::int64_t first_node = view.shared / TILE_KEYS;  // the first tile that holds any
    const std::int64_t node_tiles = (view.context + view.rows - 1) / TILE_KEYS - first_node + 1;
    std::int64_t low = INT64_MAX, shared_high = -1, configured = 0;
    bool tree = false;
    Block block[UNIT_QUERIES / BLOCK] = {};

    Attending(const AttentionWork& w, const AttentionUnit& u, std::int64_t split, AttentionPart p, const Room& r)
        : work(w), unit(u), view(w, u), part(p), room(r), base(split * SPLIT_KEYS) {
        for (std::int64_t index = 0; index < blocks; ++index) look_at(block[index], index * BLOCK, split);
    }

    void run() {
        for (std::int64_t tile = low / TILE_KEYS; tile * TILE_KEYS <= shared_high; ++tile) score_tile(tile);
        if (tree) score_nodes();
        for (std::int64_t index = 0; index < blocks; ++index) weigh_block(block[index]);
        for (std::int64_t i = 0; i < unit.count * dim; ++i) part.values[i] = 0.0f;
        for (std::int64_t tile = low / TILE_KEYS; tile * TILE_KEYS <= shared_high; ++tile) add_tile(tile);
        for (std::int64_t index = 0; tree && index < blocks; ++index) add_tails(block[index]);
    }

    void shape(std::int64_t count) {
        if (configured != count) configure(count);
        configured = count;
    }

    float* scores_of(std::int64_t query) const { return room.scores + query * SCORES; }

    void look_at(Block& to, std::int64_t first, std::int64_t split) {
        to.first = first;
        to.count = unit.count - first < BLOCK ? unit.count - first : BLOCK;
        for (std::int64_t q = 0; q < to.count; ++q) {
            const Seen seen = to.seen[q] = avx512::look(view, unit.first + first + q, split);
            if (seen.high < seen.low) continue;
            to.low = seen.low < to.low ? seen.low : to.low;
            to.high = seen.high > to.high ? seen.high : to.high;
            to.shared_high = seen.shared_high > to.shared_high ? seen.shared_high : to.shared_high;
            to.tree = to.tree || seen.tree();
            const float* from = work.query + ((view.start + seen.row) * work.heads + seen.head) * dim;
            for (std::int64_t d = 0; d < dim; d += TERMS) put_left(from + d, work.scale, left_of(to, d) + q * TERMS);
        }
        low = to.low < low ? to.low : low;
        shared_high = to.shared_high > shared_high ? to.shared_high : shared_high;
        tree = tree || to.tree;
    }

    std::uint16_t* left_of(const Block& of, std::int64_t d) const { return room.queries + (of.first / BLOCK * (dim / TERMS) + d / TERMS) * 2 * TILE; }

    // Makes right sides of a tile of keys.
    void pair_keys(std::int64_t tile, Ahead ahead) const {
        const Element* rows[TERMS];
        for (std::int64_t d = 0; d < dim; d += TERMS) {
            for (std::int64_t i = 0; i < TERMS; ++i) rows[i] = view.key_tile(tile) + (d + i) * TILE_KEYS;
            pair_rows(rows, TILE_KEYS, room.pairs + d / TERMS * 8 * TILE, ahead);
        }
    }

    void score(const Block& of, float* to, std::int64_t stride) {
        shape(of.count);
        zero_sums();
        for (std::int64_t d = 0; d < dim; d += TERMS) add_products<WHOLE<Element>>(left_of(of, d), room.pairs + d / TERMS * 8 * TILE);
        store_sums(to, stride);
    }

    void score_tile(std::int64_t tile) {
        const bool last = (tile + 1) * TILE_KEYS > shared_high;
        pair_keys(tile, Ahead(last ? view.value_tile(low / TILE_KEYS) : view.key_tile(tile + 1), dim));
        for (std::int64_t index = 0; index < blocks; ++index) {
            if (block[index].reaches(tile)) score(block[index], scores_of(block[index].first) + tile * TILE_KEYS - base, SCORES);
        }
    }

    // Scores of nodes: computed where they lie, then put in order of position.
    void score_nodes() {
        const std::int64_t stride = node_tiles * TILE_KEYS;
        for (std::int64_t tile = 0; tile < node_tiles; ++tile) {
            pair_keys(first_node + tile, Ahead());
            for (std::int64_t index = 0; index < blocks; ++index) {
                if (block[index].tree) score(block[index], room.tree + block[index].first * stride + tile * TILE_KEYS, stride);
            }
        }
        for (std::int64_t query = 0; query < unit.count; ++query) {
            const Seen& seen = block[query / BLOCK].seen[query % BLOCK];
            for (std::int64_t position = first_of_tree(seen); position <= seen.high; ++position) {
                scores_of(query)[position - base] = room.tree[query * stride + index_of(seen, position) - first_node * TILE_KEYS];
            }
        }
    }

    std::int64_t first_of_tree(const Seen& seen) const { return seen.low > view.shared ? seen.low : view.shared; }

    std::int64_t index_of(const Seen& seen, std::int64_t position) const {
        if (position < view.shared) return position;
        return work.paths[(view.start + seen.row) * work.path_stride + position - view.shared];
    }

    void weigh_block(const Block& of) const {
        for (std::int64_t q = 0; q < of.count; ++q) {
            float *top = part.top + of.first + q, *total = part.total + of.first + q;
            *top = avx512::NOTHING;
            *total = 0.0f;
            if (of.high >= of.low) avx512::weigh(work, of.seen[q], base, of.begin(), of.end(), scores_of(of.first + q), top, total);
        }
    }

    const Element* value_at(std::int64_t index) const { return view.value_tile(index / TILE_KEYS) + index % TILE_KEYS * dim; }

    // values[first and `count`] += weights (made already) times `terms` values (as right sides).
    void add(std::int64_t first, std::int64_t count, std::int64_t terms) {
        shape(count);
        for (std::int64_t d = 0; d < dim; d += 64) {
            float* to = part.values + first * dim + d;
            load_sums(to, dim);
            for (std::int64_t i = 0; i < terms / TERMS; ++i) {
                add_products<WHOLE<Element>>(room.weights + i * 2 * TILE, room.pairs + (i * dim + d) / LINE * 2 * TILE);
            }
            store_sums(to, dim);
        }
    }

    // What lies in order: all that the chain sees, and of nodes what lies before the 32 positions that the tree begins in.
    void add_tile(std::int64_t tile) {
        const Element* rows[TERMS];
        Ahead ahead;
        if ((tile + 1) * TILE_KEYS <= shared_high) ahead = Ahead(view.value_tile(tile + 1), dim);
        for (std::int64_t i = 0; i < TILE_KEYS; i += TERMS) {
            for (std::int64_t k = 0; k < TERMS; ++k) {
                const std::int64_t position = tile * TILE_KEYS + i + k;
                rows[k] = position >= low && position <= shared_high ? value_at(position) : nullptr;  // what others left there may be no number
            }
            pair_rows(rows, dim, room.pairs + i * dim / LINE / TERMS * 2 * TILE, ahead);
        }
        for (std::int64_t index = 0; index < blocks; ++index) {
            const Block& of = block[index];
            if (!of.reaches(tile)) continue;
            for (std::int64_t q = 0; q < of.count; ++q) {
                for (std::int64_t i = 0; i < TILE_KEYS; i += TERMS) {
                    const std::int64_t position = tile * TILE_KEYS + i;
                    const bool later = of.seen[q].tree() && position >= tail_of(of);
                    put_left(scores_of(of.first + q) + position - base, later ? 0.0f : 1.0f, room.weights + i / TERMS * 2 * TILE + q * TERMS);
                }
            }
            add(of.first, of.count, TILE_KEYS);
        }
    }

    // Where, in this split, what nodes see is gathered.
    std::int64_t tail_of(const Block& of) const {
        const std::int64_t start = view.shared / TERMS * TERMS;
        return start > of.begin() ? start : of.begin();
    }

    void add_tails(const Block& of) {
        for (std::int64_t q = 0, next; q < of.count; q = next) {
            const Seen& seen = of.seen[q];
            for (next = q + 1; next < of.count && of.seen[next].row == seen.row;) ++next;
            for (std::int64_t from = tail_of(of); seen.tree() && from <= seen.high; from += TERMS) {
                const Element* rows[TERMS];
                Ahead nothing;
                for (std::int64_t k = 0; k < TERMS; ++k) rows[k] = from + k >= seen.low && from + k <= seen.high ? value_at(index_of(seen, from + k)) : nullptr;
                pair_rows(rows, dim, room.pairs, nothing);
                for (std::int64_t i = q; i < next; ++i) put_left(scores_of(of.first + i) + from - base, 1.0f, room.weights + (i - q) * TERMS);
                add(of.first + q, next - q, TERMS);
            }
        }
    }
};

Room room_in(float* memory, std::int64_t dim) {
    const auto halves = [](float* at) { return reinterpret_cast<std::uint16_t*>(at); };
    float* pairs = memory + UNIT_QUERIES * dim;
    float* weights = pairs + TILE_KEYS * dim;
    float* scores = weights + 2 * TILE;
    return {halves(memory), halves(pairs), halves(weights), scores, scores + UNIT_QUERIES * SCORES};
}

template <class Element>
void attend_split(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* memory) {
    Attending<Element>(work, unit, split, part, room_in(memory, work.head_dim)).run();
    _tile_release();
}

}  // namespace

std::int64_t attention_room_amx(std::int64_t head_dim, std::int64_t rows) {
    const std::int64_t tree = (rows / TILE_KEYS + 2) * TILE_KEYS;
    return (UNIT_QUERIES + TILE_KEYS) * head_dim + 2 * TILE + UNIT_QUERIES * (SCORES + tree);
}

bool attends_amx(PoolElement element, std::int64_t head_dim) { return element != FLOAT32 && head_dim % 64 == 0; }

void attend_split_amx(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room) {
    if (work.element == FLOAT16) return attend_split<avx512::Half>(work, unit, split, part, room);
    return attend_split<std::uint16_t>(work, unit, split, part, room);
}

}  // namespace hasten
#endif
