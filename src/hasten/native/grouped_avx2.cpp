// AVX2, a few rows: unpacked codes stay in registers while the rows pass over them, one strip after the other as they lie in memory.
#if defined(__x86_64__)
#include "grouped_avx2.h"

namespace hasten {
namespace {

// Exact int32 sums of one row's products with a group, times the integer scales.
template <int KIND>
INLINE __m256i products(const __m256i* codes, const std::int8_t* x, const std::int16_t* half_sums, const Factors& factors) {
    __m256i sums[VECTORS];
    if (code_bits(KIND) == 8) {
        for (int i = 0; i < VECTORS; ++i) {
            const __m256i signed_x = _mm256_sign_epi8(four_inputs(x + 4 * i), codes[i]);
            sums[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), signed_x), factors.first);
        }
        for (int step = 4; step > 0; step /= 2)
            for (int i = 0; i < step; ++i) sums[i] = _mm256_add_epi32(sums[i], sums[i + step]);
        return sums[0];
    }
    if (code_bits(KIND) == 6) {
        for (int i = 0; i < VECTORS; ++i) sums[i] = _mm256_maddubs_epi16(codes[i], four_inputs(x + 4 * i));
        for (int i = 0; i < VECTORS; i += 2) sums[i] = _mm256_add_epi16(sums[i], sums[i + 1]);
        const __m256i one = _mm256_add_epi32(_mm256_madd_epi16(sums[0], factors.first), _mm256_madd_epi16(sums[2], factors.first));
        const __m256i two = _mm256_add_epi32(_mm256_madd_epi16(sums[4], factors.second), _mm256_madd_epi16(sums[6], factors.second));
        std::int32_t both;
        __builtin_memcpy(&both, half_sums, 4);
        const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(factors.pairs, _mm256_set1_epi32(both)), 5);
        return _mm256_sub_epi32(_mm256_add_epi32(one, two), zero);
    }
    auto two_of = [&](int i) {
        const __m256i first = _mm256_maddubs_epi16(codes[i], four_inputs(x + 4 * i));
        return in_order(_mm256_add_epi16(first, _mm256_maddubs_epi16(codes[i + 1], four_inputs(x + 4 * i + 4))));
    };
    const __m256i one = in_order(_mm256_add_epi16(two_of(0), two_of(2))), two = in_order(_mm256_add_epi16(two_of(4), two_of(6)));
    if (code_bits(KIND) == 5) return _mm256_add_epi32(_mm256_madd_epi16(one, factors.first), _mm256_madd_epi16(two, factors.first));
    return _mm256_madd_epi16(_mm256_add_epi16(one, two), factors.first);
}

const std::int64_t AHEAD_BYTES = 4096;  // that prefetching runs ahead

// Rows up to here wait for memory more than for the processor; more do better in tiles.
const std::int64_t MOST_FEW = 2;

// Sums of the rows; `part` and `low` are those of the super-block at hand.
template <int ROWS>
struct Sums {
    __m256 sum[ROWS], part[ROWS], low[ROWS];
};

template <int KIND, int ROWS>
INLINE void add_group(const GroupedRows& x, std::int64_t row, std::int64_t group, const __m256i* codes, const Factors& factors, __m256 d, __m256 low, Sums<ROWS>& sums) {
    const bool lowered = is_lowered(KIND);
    for (std::int64_t r = 0; r < ROWS; ++r) {
        const std::int64_t at = x.at(row, group) + r;
        const __m256 dot = _mm256_cvtepi32_ps(products<KIND>(codes, x.codes + at * GROUP_INPUTS, x.half_sums + 2 * at, factors));
        const __m256 scale = _mm256_set1_ps(x.scale[at]);
        if (has_super_blocks(KIND)) {
            sums.part[r] = _mm256_fmadd_ps(dot, scale, sums.part[r]);
            if (lowered) sums.low[r] = _mm256_fmadd_ps(low, _mm256_set1_ps(x.scaled_sum[at]), sums.low[r]);
        } else {
            sums.sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), d, sums.sum[r]);
            if (lowered) sums.sum[r] = _mm256_fmadd_ps(low, _mm256_set1_ps(x.scaled_sum[at]), sums.sum[r]);
        }
    }
}

// Both halves of a strip's chunk, in turns with every group, so that memory is asked for evenly.
template <int KIND, int ROWS>
INLINE void add_chunk(const GroupedRows& x, std::int64_t row, std::int64_t first, const std::uint8_t* chunk, Sums<ROWS>* sums) {
    const bool lowered = is_lowered(KIND);
    __m256 d[2], low[2];
    Integers integers[2];
    for (int half = 0; half < 2; ++half) {
        d[half] = halves_at(chunk + 16 * half);
        low[half] = low_of<KIND>(chunk, half, d[half]);
        if (has_super_blocks(KIND) && KIND != Q6_K) six_bits(chunk, half, integers[half]);
        for (std::int64_t r = 0; r < ROWS && has_super_blocks(KIND); ++r) sums[half].part[r] = sums[half].low[r] = _mm256_setzero_ps();
    }
    for (int group = 0; group < block_inputs(KIND) / GROUP_INPUTS; ++group) {
        const std::uint8_t* at = chunk + header_bytes(KIND) + group * group_bytes(KIND);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            prefetch(at + AHEAD_BYTES + half * group_bytes(KIND) / 2, group_bytes(KIND) / 2);
            __m256i codes[VECTORS];
            unpack<KIND>(at + 32 * half, codes);
            const __m256 minimum = has_super_blocks(KIND) && lowered ? minimum_of(integers[half], group) : low[half];
            const Factors factors = factors_of<KIND>(chunk, half, integers[half], group);
            add_group<KIND, ROWS>(x, row, first + group, codes, factors, d[half], minimum, sums[half]);
        }
    }
    for (int half = 0; half < 2 && has_super_blocks(KIND); ++half) {
        for (std::int64_t r = 0; r < ROWS; ++r) {
            sums[half].sum[r] = _mm256_fmadd_ps(d[half], sums[half].part[r], sums[half].sum[r]);
            if (lowered) sums[half].sum[r] = _mm256_fnmadd_ps(low[half], sums[half].low[r], sums[half].sum[r]);
        }
    }
}

template <int KIND, int ROWS>
void strips(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row) {
    const std::int64_t bytes = strip_bytes(KIND, call.x.inputs), chunks = call.x.inputs / block_inputs(KIND);
    Sums<ROWS> sums[2];
    for (std::int64_t strip = first; strip < last; ++strip) {
        for (auto& half : sums)
            for (auto& sum : half.sum) sum = _mm256_setzero_ps();
        const std::uint8_t* chunk = part.packed + strip * bytes;
        for (std::int64_t i = 0; i < chunks; ++i, chunk += block_bytes(KIND) * STRIP_OUTPUTS) {
            add_chunk<KIND, ROWS>(call.x, row, i * (block_inputs(KIND) / GROUP_INPUTS), chunk, sums);
        }
        for (int half = 0; half < 2; ++half) {
            const std::int64_t done = strip * STRIP_OUTPUTS + half * HALF_OUTPUTS;
            for (std::int64_t r = 0; r < ROWS; ++r) finish(call, row + r, offset + done, part.outputs - done, sums[half].sum[r]);
        }
    }
}

template <int KIND>
void some_strips(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
                 std::int64_t count) {
    if (count > MOST_FEW) return grouped_avx2_panel(call, part, offset, first, last, row, count);
    return (count == 1 ? strips<KIND, 1> : strips<KIND, 2>)(call, part, offset, first, last, row);
}

}  // namespace

void grouped_avx2(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                  std::int64_t row, std::int64_t count) {
    switch (part.kind) {
        case Q4_0: return some_strips<Q4_0>(call, part, offset, first, last, row, count);
        case Q4_1: return some_strips<Q4_1>(call, part, offset, first, last, row, count);
        case Q5_0: return some_strips<Q5_0>(call, part, offset, first, last, row, count);
        case Q5_1: return some_strips<Q5_1>(call, part, offset, first, last, row, count);
        case Q8_0: return some_strips<Q8_0>(call, part, offset, first, last, row, count);
        case Q4_K: return some_strips<Q4_K>(call, part, offset, first, last, row, count);
        case Q5_K: return some_strips<Q5_K>(call, part, offset, first, last, row, count);
        case Q6_K: return some_strips<Q6_K>(call, part, offset, first, last, row, count);
    }
}

}  // namespace hasten
#endif
