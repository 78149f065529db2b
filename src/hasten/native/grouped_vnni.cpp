// AVX-512 VNNI: a strip's sixteen outputs in the lanes of a register, four inputs an output and instruction.
//
// A tile of rows passes over 256 inputs at a time: the codes of a group stay in eight registers while the tile's rows use them, and its
// sums stay in registers too. The first tile unpacks the codes and leaves them in the first-level cache for the tiles after it. Codes
// are multiplied as unsigned bytes: Q8_0's are moved by 128 and Q6_K's by 32, and the exact sums of the rows' codes take that out again.
#if defined(__x86_64__)
#include "grouped_avx2.h"
#include "repeat_avx512.h"

namespace hasten {
namespace {

const int TILE_ROWS = 8;   // whose sums are in registers at once
// Of GROUPS groups that memory is asked for before they are needed: by distance, because a strip may end with a shorter run.
const int RUNS_AHEAD = 2;

INLINE __m512i line_at(const std::uint8_t* from) { return _mm512_loadu_si512(from); }

INLINE __m512 all_halves_at(const std::uint8_t* from) { return _mm512_cvtph_ps(bytes_at(from)); }

// Bits that stand at `bit` of each byte, moved to position 4 and masked.
INLINE __m512i to_fifth(__m512i bits, int bit, char mask) {
    return _mm512_and_si512(bit < 4 ? _mm512_slli_epi16(bits, 4 - bit) : _mm512_srli_epi16(bits, bit - 4), _mm512_set1_epi8(mask));
}

// The codes of one group, unsigned.
template <int KIND>
INLINE void unpack(const std::uint8_t* group, __m512i* codes) {
    if (code_bits(KIND) == 8) {
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i) codes[i] = _mm512_xor_si512(line_at(group + i * 64), _mm512_set1_epi8(-128));
        return;
    }
    const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS / 2; ++i) {
        const __m512i both = line_at(group + (code_bits(KIND) - 4 + i) * 64);
        codes[i] = _mm512_and_si512(both, nibble);
        codes[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2 && code_bits(KIND) > 4; ++half) {
        const __m512i upper = line_at(group + (code_bits(KIND) == 6 ? half * 64 : 0));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m512i bits = code_bits(KIND) == 6 ? to_fifth(upper, i * 2, 48) : to_fifth(upper, half * 4 + i, 16);
            codes[half * 4 + i] = _mm512_or_si512(codes[half * 4 + i], bits);
        }
    }
}

// GROUPS groups, or fewer at the end, but for their codes.
struct Scales {
    __m512 scale[GROUPS], low[GROUPS];  // flat formats: d and the minimum
    __m512i pairs[GROUPS];              // Q6_K: the integer scales of both halves, in 16 bits
    alignas(64) std::uint8_t integers[GROUPS * STRIP_OUTPUTS], minimums[GROUPS * STRIP_OUTPUTS];  // other super-blocks, a line a group
    __m512 block_d, block_low;
};

INLINE __m512i sixteen_at(const std::uint8_t* from) { return _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from))); }

// Planes of six-bit integers (see put_lane) as bytes.
INLINE void six_bits(const std::uint8_t* chunk, Scales& out) {
    const __m512i turns = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // brings both halves of a group together
    const __m512i first = _mm512_permutexvar_epi64(turns, line_at(chunk + 64)), second = _mm512_permutexvar_epi64(turns, line_at(chunk + 128));
    const __m512i third = _mm512_permutexvar_epi64(turns, line_at(chunk + 192));
    const __m512i low = _mm512_set1_epi8(63), nibble = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48);
    _mm512_store_si512(out.integers, _mm512_and_si512(first, low));
    _mm512_store_si512(out.minimums, _mm512_and_si512(second, low));
    _mm512_store_si512(out.integers + 64, _mm512_or_si512(_mm512_and_si512(third, nibble), _mm512_and_si512(_mm512_srli_epi16(first, 2), top)));
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(third, 4), nibble);
    _mm512_store_si512(out.minimums + 64, _mm512_or_si512(high, _mm512_and_si512(_mm512_srli_epi16(second, 2), top)));
}

template <int KIND>
INLINE void read_scales(const std::uint8_t* chunk, int count, Scales& out) {
    if (has_super_blocks(KIND)) {
        out.block_d = all_halves_at(chunk);
        if (is_lowered(KIND)) out.block_low = all_halves_at(chunk + 32);
        if (KIND != Q6_K) return six_bits(chunk, out);
        for (int group = 0; group < GROUPS; ++group) out.pairs[group] = _mm512_cvtepi8_epi16(bytes_at(chunk + 32 + group * 32));
        return;
    }
    for (int group = 0; group < count; ++group, chunk += group_stride(KIND)) {
        out.scale[group] = all_halves_at(chunk);
        out.low[group] = has_minimum(KIND) ? all_halves_at(chunk + 32)
                                           : _mm512_mul_ps(out.scale[group], _mm512_set1_ps(static_cast<float>(-zero_code(KIND))));
    }
}

// Exact sum of one row's products with a group, of super-blocks times the integer scales: `scales` are those of a group or, of Q6_K,
// of both halves in 16 bits.
template <int KIND>
INLINE __m512i product(const __m512i* codes, const std::int8_t* x, const std::int16_t* half_sums, __m512i scales) {
    __m512i sum = code_bits(KIND) == 8 ? _mm512_dpwssd_epi32(_mm512_setzero_si512(), _mm512_set1_epi16(-128), repeat_four(half_sums))
                                       : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum = _mm512_dpbusd_epi32(sum, codes[i], repeat_four(x + 4 * i));
    __m512i other = KIND == Q6_K ? _mm512_setzero_si512() : sum;
#pragma GCC unroll 4
    for (int i = 4; i < 8; ++i) other = _mm512_dpbusd_epi32(other, codes[i], repeat_four(x + 4 * i));
    if (KIND != Q6_K) return has_super_blocks(KIND) ? _mm512_mullo_epi32(other, scales) : other;
    const __m512i first = _mm512_mullo_epi32(sum, _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16));
    const __m512i both = _mm512_add_epi32(first, _mm512_mullo_epi32(other, _mm512_srai_epi32(scales, 16)));
    return _mm512_dpwssd_epi32(both, _mm512_slli_epi16(_mm512_sub_epi16(_mm512_setzero_si512(), scales), 5), repeat_four(half_sums));
}

// A run of groups of a strip, and what goes with it.
struct Run {
    std::int64_t first;  // group
    int count;           // of groups
    const std::uint8_t* chunk;
    Scales scales;
    __m512i codes[GROUPS][VECTORS];  // unpacked, once a tile has left them
};

// A tile's rows from `row` on with a run's groups, added to `sums`. With each group `bytes` from `ahead` on are fetched from memory.
template <int KIND, int ROWS, bool UNPACK, bool KEEP>
INLINE void add_tile(const GroupedRows& x, std::int64_t row, Run& run, const std::uint8_t* ahead, std::int64_t bytes, __m512* sums) {
    const Scales& scales = run.scales;
    __m512 part[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) part[r] = has_super_blocks(KIND) ? _mm512_setzero_ps() : sums[r];
    for (int group = 0; group < run.count; ++group) {
        prefetch(ahead + group * bytes, bytes);
        __m512i codes[VECTORS];
        if (UNPACK) unpack<KIND>(run.chunk + header_bytes(KIND) + group * group_stride(KIND), codes);
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i) {
            if (!UNPACK) codes[i] = run.codes[group][i];
            if (KEEP) run.codes[group][i] = codes[i];
        }
        const std::int64_t at = x.at(row, run.first + group);
        __m512i integers = scales.pairs[group];
        if (has_super_blocks(KIND) && KIND != Q6_K) integers = sixteen_at(scales.integers + group * STRIP_OUTPUTS);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const std::int64_t here = at + r;
            const __m512 dot = _mm512_cvtepi32_ps(product<KIND>(codes, x.codes + here * GROUP_INPUTS, x.half_sums + 2 * here, integers));
            const __m512 scale = _mm512_set1_ps(x.scale[here]);
            if (has_super_blocks(KIND)) {
                part[r] = _mm512_fmadd_ps(dot, scale, part[r]);
            } else {
                part[r] = _mm512_fmadd_ps(_mm512_mul_ps(dot, scale), scales.scale[group], part[r]);
                if (is_lowered(KIND)) part[r] = _mm512_fmadd_ps(scales.low[group], _mm512_set1_ps(x.scaled_sum[here]), part[r]);
            }
        }
    }
    if (!has_super_blocks(KIND)) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sums[r] = part[r];
        return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sums[r] = _mm512_fmadd_ps(scales.block_d, part[r], sums[r]);
    if (!is_lowered(KIND)) return;
    __m512 low[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) low[r] = _mm512_setzero_ps();
    for (int group = 0; group < run.count; ++group) {
        const __m512 minimum = _mm512_cvtepi32_ps(sixteen_at(scales.minimums + group * STRIP_OUTPUTS));
        const float* scaled_sums = x.scaled_sum + x.at(row, run.first + group);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) low[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(scaled_sums[r]), low[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sums[r] = _mm512_fnmadd_ps(scales.block_low, low[r], sums[r]);
}

template <int KIND, bool UNPACK, bool KEEP>
INLINE void add_rows(std::int64_t rows, const GroupedRows& x, std::int64_t row, Run& run, const std::uint8_t* ahead, std::int64_t bytes,
                     __m512* sums) {
    switch (rows) {
        case 1: return add_tile<KIND, 1, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 2: return add_tile<KIND, 2, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 3: return add_tile<KIND, 3, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 4: return add_tile<KIND, 4, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 5: return add_tile<KIND, 5, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 6: return add_tile<KIND, 6, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        case 7: return add_tile<KIND, 7, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
        default: return add_tile<KIND, 8, UNPACK, KEEP>(x, row, run, ahead, bytes, sums);
    }
}

INLINE void finish(const GroupedCall& call, std::int64_t row, std::int64_t output, std::int64_t left, __m512 sum) {
    const __mmask16 lanes = left >= STRIP_OUTPUTS ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
    const std::int64_t at = row * call.outputs + output;
    if (call.bias != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, call.bias + output));
    if (call.residual != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, call.residual + at));
    _mm512_mask_storeu_ps(call.out + at, lanes, sum);
}

// Tiles are as equal as they can be.
template <int KIND>
void strips(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
            std::int64_t count) {
    const std::int64_t groups = call.x.groups(), bytes = strip_bytes(KIND, call.x.inputs), runs = (groups + GROUPS - 1) / GROUPS;
    const std::int64_t tiles = (count + TILE_ROWS - 1) / TILE_ROWS, share = (run_bytes(KIND) / GROUPS + tiles - 1) / tiles;
    Run run;
    __m512 sums[MOST_PANEL];
    for (std::int64_t strip = first; strip < last; ++strip) {
        const std::uint8_t* start = part.packed + strip * bytes;
        for (std::int64_t r = 0; r < count; ++r) sums[r] = _mm512_setzero_ps();
        for (std::int64_t i = 0; i < runs; ++i) {
            run.first = i * GROUPS;
            run.count = groups - run.first < GROUPS ? static_cast<int>(groups - run.first) : GROUPS;
            run.chunk = start + i * run_bytes(KIND);
            read_scales<KIND>(run.chunk, run.count, run.scales);
            const std::uint8_t* ahead = run.chunk + RUNS_AHEAD * run_bytes(KIND);
            for (std::int64_t tile = 0; tile < tiles; ++tile, ahead += run.count * share) {
                const std::int64_t from = count * tile / tiles, rows = count * (tile + 1) / tiles - from;
                if (tiles == 1) {
                    add_rows<KIND, true, false>(rows, call.x, row, run, ahead, share, sums);
                } else if (tile == 0) {
                    add_rows<KIND, true, true>(rows, call.x, row, run, ahead, share, sums);
                } else {
                    add_rows<KIND, false, false>(rows, call.x, row + from, run, ahead, share, sums + from);
                }
            }
        }
        const std::int64_t done = strip * STRIP_OUTPUTS;
        for (std::int64_t r = 0; r < count; ++r) finish(call, row + r, offset + done, part.outputs - done, sums[r]);
    }
}

}  // namespace

void grouped_vnni(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                  std::int64_t row, std::int64_t count) {
    switch (part.kind) {
        case Q4_0: return strips<Q4_0>(call, part, offset, first, last, row, count);
        case Q4_1: return strips<Q4_1>(call, part, offset, first, last, row, count);
        case Q5_0: return strips<Q5_0>(call, part, offset, first, last, row, count);
        case Q5_1: return strips<Q5_1>(call, part, offset, first, last, row, count);
        case Q8_0: return strips<Q8_0>(call, part, offset, first, last, row, count);
        case Q4_K: return strips<Q4_K>(call, part, offset, first, last, row, count);
        case Q5_K: return strips<Q5_K>(call, part, offset, first, last, row, count);
        case Q6_K: return strips<Q6_K>(call, part, offset, first, last, row, count);
    }
}

}  // namespace hasten
#endif
