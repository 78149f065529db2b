// AVX2, a panel of rows: tiles of rows by two strips pass over 256 inputs at a time with their sums in registers, so that a load of a
// row's codes serves sixteen outputs and one of weights all rows of a tile. Many tiles take codes that were unpacked once into the
// first-level cache; few tiles unpack them in passing, which costs less than storing them, and byte codes need no unpacking at all.
#if defined(__x86_64__)
#include "grouped_avx2.h"

namespace hasten {
namespace {

const int GROUPS = 8;        // that are unpacked together: a super-block, or as many blocks of a flat format
const int CHUNKS_AHEAD = 2;  // of so many groups that memory is asked for before they are needed

// Up to eight groups of one strip.
struct Unpacked {
    __m256i codes[GROUPS][VECTORS];
    Factors factors[GROUPS];
    __m256 d[GROUPS], low[GROUPS];  // of super-blocks: `low` are the groups' minimums
    __m256 block_d, block_low;
    const std::uint8_t* packed;     // the first group's codes
};

// Bytes from one group's codes to the next one's.
constexpr std::int64_t group_stride(int kind) { return has_super_blocks(kind) ? group_bytes(kind) : block_bytes(kind) * STRIP_OUTPUTS; }

// Bytes of GROUPS groups of a strip.
template <int KIND>
constexpr std::int64_t CHUNK_BYTES = block_bytes(KIND) * STRIP_OUTPUTS * (GROUPS * GROUP_INPUTS / block_inputs(KIND));

// One sum for each row and strip of a tile.
template <int ROWS, int STRIPS, class Lanes>
struct Tile {
    Lanes at[ROWS][STRIPS];
};

// Groups [0, count) from `chunk` on; their codes stay where they are if they are read DIRECTly.
template <int KIND, bool DIRECT>
INLINE void unpack_strip(const std::uint8_t* chunk, int count, Unpacked& out) {
    Integers integers;
    out.packed = chunk + header_bytes(KIND);
    if (has_super_blocks(KIND)) {
        out.block_d = halves_at(chunk);
        out.block_low = low_of<KIND>(chunk, out.block_d);
        if (KIND != Q6_K) six_bits(chunk, integers);
    }
    for (int group = 0; group < count; ++group) {
        const std::uint8_t* at = out.packed + group * group_stride(KIND);
        if (!DIRECT) unpack<KIND>(at, out.codes[group]);
        if (has_super_blocks(KIND)) {
            out.factors[group] = factors_of<KIND>(chunk, integers, group);
            if (is_lowered(KIND)) out.low[group] = minimum_of(integers, group);
        } else {
            out.d[group] = halves_at(at - header_bytes(KIND));
            out.low[group] = low_of<KIND>(at - header_bytes(KIND), out.d[group]);
        }
    }
}

// Exact int32 sums of a tile's products with one group, times the integer scales.
template <int KIND, int ROWS, int STRIPS, bool DIRECT>
INLINE Tile<ROWS, STRIPS, __m256i> tile_products(const Unpacked* strips, int group, const std::int8_t* x, std::int64_t stride,
                                                 const std::int16_t* half_sums) {
    // Products that fit into 16 bits before they are widened.
    const int together = code_bits(KIND) == 4 ? 8 : code_bits(KIND) == 5 ? 4 : code_bits(KIND) == 6 ? 2 : 1;
    Tile<ROWS, STRIPS, __m256i> total;
#pragma GCC unroll 8
    for (int first = 0; first < VECTORS; first += together) {
        Tile<ROWS, STRIPS, __m256i> some;
#pragma GCC unroll 8
        for (int i = first; i < first + together; ++i) {
            __m256i vectors[STRIPS];
#pragma GCC unroll 2
            for (int s = 0; s < STRIPS; ++s) {
                if (DIRECT) vectors[s] = codes_at<KIND>(strips[s].packed + group * group_stride(KIND), i);
            }
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; ++r) {
                const __m256i four = four_inputs(x + r * stride + 4 * i);
#pragma GCC unroll 2
                for (int s = 0; s < STRIPS; ++s) {
                    const __m256i codes = DIRECT ? vectors[s] : strips[s].codes[group][i];
                    const __m256i product = code_bits(KIND) == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes))
                                                                 : _mm256_maddubs_epi16(codes, four);
                    some.at[r][s] = i == first ? product : in_order(_mm256_add_epi16(some.at[r][s], product));
                }
            }
        }
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
            for (int s = 0; s < STRIPS; ++s) {
                const Factors& factors = strips[s].factors[group];
                const __m256i factor = !has_super_blocks(KIND) ? _mm256_set1_epi16(1) : KIND == Q6_K && first >= 4 ? factors.second : factors.first;
                const __m256i wide = _mm256_madd_epi16(some.at[r][s], factor);
                total.at[r][s] = first == 0 ? wide : in_order(_mm256_add_epi32(total.at[r][s], wide));
            }
        }
    }
    if (KIND != Q6_K) return total;
#pragma GCC unroll 5
    for (int r = 0; r < ROWS; ++r) {
        std::int32_t both;
        __builtin_memcpy(&both, half_sums + r * (stride / GROUP_INPUTS) * 2, 4);
#pragma GCC unroll 2
        for (int s = 0; s < STRIPS; ++s) {
            const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(strips[s].factors[group].pairs, _mm256_set1_epi32(both)), 5);
            total.at[r][s] = _mm256_sub_epi32(total.at[r][s], zero);
        }
    }
    return total;
}

// What is fetched from memory while a tile is worked on: `bytes` with each group, of each strip.
struct Ahead {
    const std::uint8_t* from;
    std::int64_t bytes, apart;
};

// A tile's rows from `row` on, groups [first, first + count), added to `sums` [row][strip].
template <int KIND, int ROWS, int STRIPS, bool DIRECT>
INLINE void add_tile(const GroupedRows& x, std::int64_t row, std::int64_t first, int count, const Unpacked* strips, const Ahead& ahead,
                     __m256 (*sums)[2]) {
    const std::int64_t groups = x.groups(), start = row * groups + first;
    Tile<ROWS, STRIPS, __m256> part, low;
    for (auto& row_parts : part.at)
        for (auto& each : row_parts) each = _mm256_setzero_ps();
    for (int group = 0; group < count; ++group) {
        for (int s = 0; s < STRIPS; ++s) prefetch(ahead.from + s * ahead.apart + group * ahead.bytes, ahead.bytes);
        const std::int64_t at = start + group;
        const auto dots = tile_products<KIND, ROWS, STRIPS, DIRECT>(strips, group, x.codes + at * GROUP_INPUTS, x.inputs, x.half_sums + 2 * at);
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
            const __m256 scale = _mm256_set1_ps(x.scale[at + r * groups]);
#pragma GCC unroll 2
            for (int s = 0; s < STRIPS; ++s) {
                const __m256 dot = _mm256_cvtepi32_ps(dots.at[r][s]);
                if (has_super_blocks(KIND)) {
                    part.at[r][s] = _mm256_fmadd_ps(dot, scale, part.at[r][s]);
                } else {
                    sums[r][s] = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), strips[s].d[group], sums[r][s]);
                    if (is_lowered(KIND)) sums[r][s] = _mm256_fmadd_ps(strips[s].low[group], _mm256_set1_ps(x.scaled_sum[at + r * groups]), sums[r][s]);
                }
            }
        }
    }
    if (!has_super_blocks(KIND)) return;
    for (auto& row_lows : low.at)
        for (auto& each : row_lows) each = _mm256_setzero_ps();
    for (int group = 0; group < count && is_lowered(KIND); ++group) {
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
            const __m256 scaled_sum = _mm256_set1_ps(x.scaled_sum[start + group + r * groups]);
#pragma GCC unroll 2
            for (int s = 0; s < STRIPS; ++s) low.at[r][s] = _mm256_fmadd_ps(strips[s].low[group], scaled_sum, low.at[r][s]);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int s = 0; s < STRIPS; ++s) {
            sums[r][s] = _mm256_fmadd_ps(strips[s].block_d, part.at[r][s], sums[r][s]);
            if (is_lowered(KIND)) sums[r][s] = _mm256_fnmadd_ps(strips[s].block_low, low.at[r][s], sums[r][s]);
        }
    }
}

// More rows a tile need more registers for sums; wider codes have two kinds of sums at once.
constexpr int tile_rows(int kind, bool direct) { return (direct ? 4 : 3) + (code_bits(kind) == 4 ? 1 : 0); }

// Rows that are worth no unpacking to memory.
constexpr std::int64_t most_direct(int kind) { return code_bits(kind) == 8 ? MOST_PANEL : tile_rows(kind, true) * (code_bits(kind) == 4 ? 2 : 1); }

// A panel's rows over groups [first, first + count), in tiles that are as equal as they can be.
template <int KIND, int STRIPS, bool DIRECT>
INLINE void add_panel(const GroupedRows& x, std::int64_t row, std::int64_t rows, std::int64_t first, int count, const Unpacked* strips,
                      const std::uint8_t* ahead, std::int64_t apart, __m256 (*sums)[2]) {
    const int most = tile_rows(KIND, DIRECT);
    const std::int64_t tiles = (rows + most - 1) / most, share = (CHUNK_BYTES<KIND> / GROUPS + tiles - 1) / tiles;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t r = rows * tile / tiles;
        const Ahead part{ahead + tile * GROUPS * share, share, apart};
        switch (rows * (tile + 1) / tiles - r) {
            case 1: add_tile<KIND, 1, STRIPS, DIRECT>(x, row + r, first, count, strips, part, sums + r); break;
            case 2: add_tile<KIND, 2, STRIPS, DIRECT>(x, row + r, first, count, strips, part, sums + r); break;
            case 3: add_tile<KIND, 3, STRIPS, DIRECT>(x, row + r, first, count, strips, part, sums + r); break;
            case 4: add_tile<KIND, most < 4 ? 3 : 4, STRIPS, DIRECT>(x, row + r, first, count, strips, part, sums + r); break;
            default: add_tile<KIND, most, STRIPS, DIRECT>(x, row + r, first, count, strips, part, sums + r);
        }
    }
}

template <int KIND, int STRIPS, bool DIRECT>
void panel(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t strip, std::int64_t row, std::int64_t count) {
    const std::int64_t inputs = call.x.inputs, groups = call.x.groups(), bytes = strip_bytes(KIND, inputs);
    const std::int64_t chunk_bytes = CHUNK_BYTES<KIND>, length = (groups + GROUPS - 1) / GROUPS;
    alignas(32) Unpacked strips[STRIPS];
    __m256 sums[MOST_PANEL][2];
    for (std::int64_t r = 0; r < count; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (std::int64_t first = 0; first < groups; first += GROUPS) {
        const int some = groups - first < GROUPS ? static_cast<int>(groups - first) : GROUPS;
        const std::uint8_t* start = part.packed + strip * bytes;
        const std::uint8_t* chunk = start + first / GROUPS * chunk_bytes;
        const std::int64_t later = first / GROUPS + CHUNKS_AHEAD, beyond = later < length ? 0 : STRIPS * bytes - length * chunk_bytes;
        const std::uint8_t* ahead = start + later * chunk_bytes + beyond;  // perhaps of the strips that follow these
        for (int s = 0; s < STRIPS; ++s) unpack_strip<KIND, DIRECT>(chunk + s * bytes, some, strips[s]);
        add_panel<KIND, STRIPS, DIRECT>(call.x, row, count, first, some, strips, ahead, bytes, sums);
    }
    for (std::int64_t r = 0; r < count; ++r) {
        for (int s = 0; s < STRIPS; ++s) {
            const std::int64_t done = (strip + s) * STRIP_OUTPUTS;
            finish(call, row + r, offset + done, part.outputs - done, sums[r][s]);
        }
    }
}

template <int KIND>
void panels(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
            std::int64_t count) {
    const bool direct = count <= most_direct(KIND);
    std::int64_t strip = first;
    for (; strip + 2 <= last; strip += 2) (direct ? panel<KIND, 2, true> : panel<KIND, 2, false>)(call, part, offset, strip, row, count);
    if (strip < last) (direct ? panel<KIND, 1, true> : panel<KIND, 1, false>)(call, part, offset, strip, row, count);
}

}  // namespace

void grouped_avx2_panel(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                        std::int64_t row, std::int64_t count) {
    switch (part.kind) {
        case Q4_0: return panels<Q4_0>(call, part, offset, first, last, row, count);
        case Q4_1: return panels<Q4_1>(call, part, offset, first, last, row, count);
        case Q5_0: return panels<Q5_0>(call, part, offset, first, last, row, count);
        case Q5_1: return panels<Q5_1>(call, part, offset, first, last, row, count);
        case Q8_0: return panels<Q8_0>(call, part, offset, first, last, row, count);
        case Q4_K: return panels<Q4_K>(call, part, offset, first, last, row, count);
        case Q5_K: return panels<Q5_K>(call, part, offset, first, last, row, count);
        case Q6_K: return panels<Q6_K>(call, part, offset, first, last, row, count);
    }
}

}  // namespace hasten
#endif
