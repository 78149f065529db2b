// AVX2, a panel of rows: tiles of rows by both halves of a strip pass over 256 inputs at a time with their sums in registers, so that a
// load of a row's codes serves sixteen outputs and one of weights all rows of a tile. Many tiles take codes that were unpacked once into the
// first-level cache; few tiles unpack them in passing, which costs less than storing them, and byte codes need no unpacking at all.
#if defined(__x86_64__)
#include "grouped_avx2.h"

namespace hasten {
namespace {

const int HALVES = 2;
const int RUNS_AHEAD = 2;  // of GROUPS groups that memory is asked for before they are needed

// Up to GROUPS groups of half a strip.
struct Unpacked {
    __m256i codes[GROUPS][VECTORS];
    Factors factors[GROUPS];
    __m256 d[GROUPS], low[GROUPS];  // of super-blocks: `low` are the groups' minimums
    __m256 block_d, block_low;
    const std::uint8_t* packed;     // the first group's codes
};

// One sum for each row and half of a tile.
template <int ROWS, class Lanes>
struct Tile {
    Lanes at[ROWS][HALVES];
};

// Groups [0, count) from `chunk` on; their codes stay where they are if they are read DIRECTly.
template <int KIND, bool DIRECT>
INLINE void unpack_half(const std::uint8_t* chunk, int half, int count, Unpacked& out) {
    Integers integers;
    out.packed = chunk + header_bytes(KIND) + 32 * half;
    if (has_super_blocks(KIND)) {
        out.block_d = halves_at(chunk + 16 * half);
        out.block_low = low_of<KIND>(chunk, half, out.block_d);
        if (KIND != Q6_K) six_bits(chunk, half, integers);
    }
    for (int group = 0; group < count; ++group) {
        if (!DIRECT) unpack<KIND>(out.packed + group * group_stride(KIND), out.codes[group]);
        if (has_super_blocks(KIND)) {
            out.factors[group] = factors_of<KIND>(chunk, half, integers, group);
            if (is_lowered(KIND)) out.low[group] = minimum_of(integers, group);
        } else {
            const std::uint8_t* block = chunk + group * group_stride(KIND);
            out.d[group] = halves_at(block + 16 * half);
            out.low[group] = low_of<KIND>(block, half, out.d[group]);
        }
    }
}

// Exact int32 sums of a tile's products with one group, times the integer scales.
template <int KIND, int ROWS, bool DIRECT>
INLINE Tile<ROWS, __m256i> tile_products(const Unpacked* halves, int group, const std::int8_t* x, const std::int16_t* half_sums) {
    // Products that fit into 16 bits before they are widened.
    const int together = code_bits(KIND) == 4 ? 8 : code_bits(KIND) == 5 ? 4 : code_bits(KIND) == 6 ? 2 : 1;
    Tile<ROWS, __m256i> total;
#pragma GCC unroll 8
    for (int first = 0; first < VECTORS; first += together) {
        Tile<ROWS, __m256i> some;
#pragma GCC unroll 8
        for (int i = first; i < first + together; ++i) {
            __m256i vectors[HALVES];
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; ++half) {
                if (DIRECT) vectors[half] = codes_at<KIND>(halves[half].packed + group * group_stride(KIND), i);
            }
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; ++r) {
                const __m256i four = four_inputs(x + r * GROUP_INPUTS + 4 * i);
#pragma GCC unroll 2
                for (int half = 0; half < HALVES; ++half) {
                    const __m256i codes = DIRECT ? vectors[half] : halves[half].codes[group][i];
                    const __m256i product = code_bits(KIND) == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes))
                                                                 : _mm256_maddubs_epi16(codes, four);
                    some.at[r][half] = i == first ? product : in_order(_mm256_add_epi16(some.at[r][half], product));
                }
            }
        }
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; ++half) {
                const Factors& factors = halves[half].factors[group];
                const __m256i factor = !has_super_blocks(KIND) ? _mm256_set1_epi16(1) : KIND == Q6_K && first >= 4 ? factors.second : factors.first;
                const __m256i wide = _mm256_madd_epi16(some.at[r][half], factor);
                total.at[r][half] = first == 0 ? wide : in_order(_mm256_add_epi32(total.at[r][half], wide));
            }
        }
    }
    if (KIND != Q6_K) return total;
#pragma GCC unroll 5
    for (int r = 0; r < ROWS; ++r) {
        std::int32_t both;
        __builtin_memcpy(&both, half_sums + r * 2, 4);
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; ++half) {
            const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(halves[half].factors[group].pairs, _mm256_set1_epi32(both)), 5);
            total.at[r][half] = _mm256_sub_epi32(total.at[r][half], zero);
        }
    }
    return total;
}

// A tile's rows from `row` on, groups [first, first + count), added to `sums` [row][half]; with each group `bytes` from `ahead` on are
// fetched from memory.
template <int KIND, int ROWS, bool DIRECT>
INLINE void add_tile(const GroupedRows& x, std::int64_t row, std::int64_t first, int count, const Unpacked* halves, const std::uint8_t* ahead,
                     std::int64_t bytes, __m256 (*sums)[HALVES]) {
    Tile<ROWS, __m256> part, low;
    for (auto& row_parts : part.at)
        for (auto& each : row_parts) each = _mm256_setzero_ps();
    for (int group = 0; group < count; ++group) {
        prefetch(ahead + group * bytes, bytes);
        const std::int64_t at = x.at(row, first + group);
        const auto dots = tile_products<KIND, ROWS, DIRECT>(halves, group, x.codes + at * GROUP_INPUTS, x.half_sums + 2 * at);
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
            const __m256 scale = _mm256_set1_ps(x.scale[at + r]);
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; ++half) {
                const __m256 dot = _mm256_cvtepi32_ps(dots.at[r][half]);
                if (has_super_blocks(KIND)) {
                    part.at[r][half] = _mm256_fmadd_ps(dot, scale, part.at[r][half]);
                } else {
                    sums[r][half] = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), halves[half].d[group], sums[r][half]);
                    if (is_lowered(KIND)) sums[r][half] = _mm256_fmadd_ps(halves[half].low[group], _mm256_set1_ps(x.scaled_sum[at + r]), sums[r][half]);
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
            const __m256 scaled_sum = _mm256_set1_ps(x.scaled_sum[x.at(row, first + group) + r]);
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; ++half) low.at[r][half] = _mm256_fmadd_ps(halves[half].low[group], scaled_sum, low.at[r][half]);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int half = 0; half < HALVES; ++half) {
            sums[r][half] = _mm256_fmadd_ps(halves[half].block_d, part.at[r][half], sums[r][half]);
            if (is_lowered(KIND)) sums[r][half] = _mm256_fnmadd_ps(halves[half].block_low, low.at[r][half], sums[r][half]);
        }
    }
}

// More rows a tile need more registers for sums; wider codes have two kinds of sums at once.
constexpr int tile_rows(int kind, bool direct) { return (direct ? 4 : 3) + (code_bits(kind) == 4 ? 1 : 0); }

// Rows that are worth no unpacking to memory.
constexpr std::int64_t most_direct(int kind) { return code_bits(kind) == 8 ? MOST_PANEL : tile_rows(kind, true) * (code_bits(kind) == 4 ? 2 : 1); }

// A panel's rows over groups [first, first + count), in tiles that are as equal as they can be.
template <int KIND, bool DIRECT>
INLINE void add_panel(const GroupedRows& x, std::int64_t row, std::int64_t rows, std::int64_t first, int count, const Unpacked* halves,
                      const std::uint8_t* ahead, __m256 (*sums)[HALVES]) {
    const int most = tile_rows(KIND, DIRECT);
    const std::int64_t tiles = (rows + most - 1) / most, share = (run_bytes(KIND) / GROUPS + tiles - 1) / tiles;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t r = rows * tile / tiles;
        const std::uint8_t* part = ahead + tile * count * share;
        switch (rows * (tile + 1) / tiles - r) {
            case 1: add_tile<KIND, 1, DIRECT>(x, row + r, first, count, halves, part, share, sums + r); break;
            case 2: add_tile<KIND, 2, DIRECT>(x, row + r, first, count, halves, part, share, sums + r); break;
            case 3: add_tile<KIND, 3, DIRECT>(x, row + r, first, count, halves, part, share, sums + r); break;
            case 4: add_tile<KIND, most < 4 ? 3 : 4, DIRECT>(x, row + r, first, count, halves, part, share, sums + r); break;
            default: add_tile<KIND, most, DIRECT>(x, row + r, first, count, halves, part, share, sums + r);
        }
    }
}

template <int KIND, bool DIRECT>
void panel(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t strip, std::int64_t row, std::int64_t count) {
    const std::int64_t groups = call.x.groups(), bytes = strip_bytes(KIND, call.x.inputs), runs = (groups + GROUPS - 1) / GROUPS;
    alignas(32) Unpacked halves[HALVES];
    __m256 sums[MOST_PANEL][HALVES];
    for (std::int64_t r = 0; r < count; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    const std::uint8_t* start = part.packed + strip * bytes;
    for (std::int64_t run = 0; run < runs; ++run) {
        const std::int64_t first = run * GROUPS;
        const int some = groups - first < GROUPS ? static_cast<int>(groups - first) : GROUPS;
        for (int half = 0; half < HALVES; ++half) unpack_half<KIND, DIRECT>(start + run * run_bytes(KIND), half, some, halves[half]);
        const std::uint8_t* ahead = start + (run + RUNS_AHEAD) * run_bytes(KIND);
        add_panel<KIND, DIRECT>(call.x, row, count, first, some, halves, ahead, sums);
    }
    for (std::int64_t r = 0; r < count; ++r) {
        for (int half = 0; half < HALVES; ++half) {
            const std::int64_t done = strip * STRIP_OUTPUTS + half * HALF_OUTPUTS;
            finish(call, row + r, offset + done, part.outputs - done, sums[r][half]);
        }
    }
}

template <int KIND>
void panels(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
            std::int64_t count) {
    const auto one = count <= most_direct(KIND) ? panel<KIND, true> : panel<KIND, false>;
    for (std::int64_t strip = first; strip < last; ++strip) one(call, part, offset, strip, row, count);
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
