// AVX2: eight outputs in the lanes of a register, four inputs an output and instruction. Unsigned codes keep the 16-bit sums of
// products from saturating: 15 * 127 * 16 products, 31 * 127 * 8 and 63 * 127 * 4 stay below 2^15. Eight-bit codes are multiplied by
// their size with the row's code under their sign, two products at a time.
#include "grouped.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace hasten {
namespace {

#define INLINE inline __attribute__((always_inline))

const int VECTORS = 8;         // of a group: eight outputs by four inputs each
const int AHEAD = 4096;        // bytes that prefetching runs ahead

INLINE __m256i bytes_at(const std::uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

INLINE __m256 halves_at(const std::uint8_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

INLINE __m256i four_inputs(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

// Bits that stand at BIT of each byte, moved to position 4 and masked.
template <int BIT>
INLINE __m256i to_fifth(__m256i bits, __m256i mask) {
    return _mm256_and_si256(BIT < 4 ? _mm256_slli_epi16(bits, BIT < 4 ? 4 - BIT : 0) : _mm256_srli_epi16(bits, BIT < 4 ? 0 : BIT - 4), mask);
}

// The codes of one group.
template <int KIND>
INLINE void unpack(const std::uint8_t* group, __m256i* codes) {
    if (code_bits(KIND) == 8) {
        for (int i = 0; i < VECTORS; ++i) codes[i] = bytes_at(group + i * 32);
        return;
    }
    const __m256i nibble = _mm256_set1_epi8(15);
    const std::uint8_t* low = group + (code_bits(KIND) - 4) * 32;
    for (int i = 0; i < 4; ++i) {
        const __m256i both = bytes_at(low + i * 32);
        codes[i] = _mm256_and_si256(both, nibble);
        codes[4 + i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    if (code_bits(KIND) == 5) {
        const __m256i bits = bytes_at(group), mask = _mm256_set1_epi8(16);
        codes[0] = _mm256_or_si256(codes[0], to_fifth<0>(bits, mask));
        codes[1] = _mm256_or_si256(codes[1], to_fifth<1>(bits, mask));
        codes[2] = _mm256_or_si256(codes[2], to_fifth<2>(bits, mask));
        codes[3] = _mm256_or_si256(codes[3], to_fifth<3>(bits, mask));
        codes[4] = _mm256_or_si256(codes[4], to_fifth<4>(bits, mask));
        codes[5] = _mm256_or_si256(codes[5], to_fifth<5>(bits, mask));
        codes[6] = _mm256_or_si256(codes[6], to_fifth<6>(bits, mask));
        codes[7] = _mm256_or_si256(codes[7], to_fifth<7>(bits, mask));
    }
    if (code_bits(KIND) == 6) {
        const __m256i mask = _mm256_set1_epi8(48);
        for (int half = 0; half < 2; ++half) {
            const __m256i bits = bytes_at(group + half * 32);
            codes[4 * half] = _mm256_or_si256(codes[4 * half], to_fifth<0>(bits, mask));
            codes[4 * half + 1] = _mm256_or_si256(codes[4 * half + 1], to_fifth<2>(bits, mask));
            codes[4 * half + 2] = _mm256_or_si256(codes[4 * half + 2], to_fifth<4>(bits, mask));
            codes[4 * half + 3] = _mm256_or_si256(codes[4 * half + 3], to_fifth<6>(bits, mask));
        }
    }
}

// What the sums of a group's products are multiplied by: 1, or the integer scale of the group (Q6_K: of each half).
struct Factors {
    __m256i first, second, pairs;
};

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
    for (int i = 0; i < VECTORS; ++i) sums[i] = _mm256_maddubs_epi16(codes[i], four_inputs(x + 4 * i));
    for (int i = 0; i < VECTORS; i += 2) sums[i] = _mm256_add_epi16(sums[i], sums[i + 1]);
    if (code_bits(KIND) == 6) {
        const __m256i one = _mm256_add_epi32(_mm256_madd_epi16(sums[0], factors.first), _mm256_madd_epi16(sums[2], factors.first));
        const __m256i two = _mm256_add_epi32(_mm256_madd_epi16(sums[4], factors.second), _mm256_madd_epi16(sums[6], factors.second));
        std::int32_t both;
        __builtin_memcpy(&both, half_sums, 4);
        const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(factors.pairs, _mm256_set1_epi32(both)), 5);
        return _mm256_sub_epi32(_mm256_add_epi32(one, two), zero);
    }
    const __m256i one = _mm256_add_epi16(sums[0], sums[2]), two = _mm256_add_epi16(sums[4], sums[6]);
    if (code_bits(KIND) == 5) return _mm256_add_epi32(_mm256_madd_epi16(one, factors.first), _mm256_madd_epi16(two, factors.first));
    return _mm256_madd_epi16(_mm256_add_epi16(one, two), factors.first);
}

// The integer scales and minimums of a chunk, a line of eight outputs for each group.
struct alignas(32) Integers {
    std::uint8_t scales[64], minimums[64];
};

INLINE void six_bits(const std::uint8_t* header, Integers& out) {
    const __m256i first = bytes_at(header + 32), second = bytes_at(header + 64), third = bytes_at(header + 96);
    const __m256i low = _mm256_set1_epi8(63), nibble = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48);
    auto put = [](std::uint8_t* to, __m256i value) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), value); };
    put(out.scales, _mm256_and_si256(first, low));
    put(out.minimums, _mm256_and_si256(second, low));
    put(out.scales + 32, _mm256_or_si256(_mm256_and_si256(third, nibble), _mm256_and_si256(_mm256_srli_epi16(first, 2), top)));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(third, 4), nibble);
    put(out.minimums + 32, _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi16(second, 2), top)));
}

template <int KIND>
INLINE Factors factors_of(const std::uint8_t* chunk, const Integers& integers, int group) {
    if (!has_super_blocks(KIND)) return {_mm256_set1_epi16(1), _mm256_setzero_si256(), _mm256_setzero_si256()};
    if (KIND == Q6_K) {
        const __m256i pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(chunk + 16 + group * 16)));
        const __m256i first = _mm256_or_si256(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(pairs, 16));
        const __m256i second = _mm256_blend_epi16(_mm256_srli_epi32(pairs, 16), pairs, 0xaa);
        return {first, second, pairs};
    }
    const __m256i spread = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1,
                                            7, -1, 7, -1);
    long long eight;
    __builtin_memcpy(&eight, integers.scales + group * 8, 8);
    return {_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), spread), _mm256_setzero_si256(), _mm256_setzero_si256()};
}

// Sums of the rows of a panel; `part` and `low` are those of the super-block at hand.
template <int ROWS>
struct Sums {
    __m256 sum[ROWS], part[ROWS], low[ROWS];
};

// `FIXED` rows, or `count` where it is 0: a known number lets the sums stay in registers.
template <int KIND, int FIXED>
INLINE void add_group(const GroupedRows& x, std::int64_t row, std::int64_t count, std::int64_t group, const __m256i* codes,
                      const Factors& factors, __m256 d, __m256 low, Sums<FIXED == 0 ? MOST_PANEL : FIXED>& sums) {
    const std::int64_t rows = FIXED == 0 ? count : FIXED, groups = x.groups();
    const bool lowered = has_minimum(KIND) || zero_code(KIND) != 0;
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t at = (row + r) * groups + group;
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

template <int KIND, int FIXED>
INLINE void add_chunk(const GroupedRows& x, std::int64_t row, std::int64_t count, std::int64_t first, const std::uint8_t* chunk,
                      Sums<FIXED == 0 ? MOST_PANEL : FIXED>& sums) {
    const std::int64_t rows = FIXED == 0 ? count : FIXED;
    const bool lowered = has_minimum(KIND) || zero_code(KIND) != 0;
    const __m256 d = halves_at(chunk);
    const __m256 low = has_minimum(KIND) ? halves_at(chunk + 16) : _mm256_mul_ps(d, _mm256_set1_ps(static_cast<float>(-zero_code(KIND))));
    Integers integers;
    if (has_super_blocks(KIND) && KIND != Q6_K) six_bits(chunk, integers);
    for (std::int64_t r = 0; r < rows && has_super_blocks(KIND); ++r) sums.part[r] = sums.low[r] = _mm256_setzero_ps();
    for (int group = 0; group < block_inputs(KIND) / GROUP_INPUTS; ++group) {
        const std::uint8_t* at = chunk + header_bytes(KIND) + group * group_bytes(KIND);
        for (int line = 0; line < group_bytes(KIND); line += 64) _mm_prefetch(reinterpret_cast<const char*>(at + AHEAD + line), _MM_HINT_T0);
        __m256i codes[VECTORS];
        unpack<KIND>(at, codes);
        __m256 minimum = low;
        if (has_super_blocks(KIND) && lowered) {
            minimum = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(integers.minimums + group * 8))));
        }
        add_group<KIND, FIXED>(x, row, count, first + group, codes, factors_of<KIND>(chunk, integers, group), d, minimum, sums);
    }
    for (std::int64_t r = 0; r < rows && has_super_blocks(KIND); ++r) {
        sums.sum[r] = _mm256_fmadd_ps(d, sums.part[r], sums.sum[r]);
        if (lowered) sums.sum[r] = _mm256_fnmadd_ps(low, sums.low[r], sums.sum[r]);
    }
}

void finish(const GroupedCall& call, std::int64_t row, std::int64_t output, std::int64_t left, __m256 sum) {
    float value[8];
    _mm256_storeu_ps(value, sum);
    const std::int64_t count = left < STRIP_OUTPUTS ? left : STRIP_OUTPUTS, at = row * call.outputs + output;
    for (std::int64_t lane = 0; lane < count; ++lane) {
        if (call.bias != nullptr) value[lane] += call.bias[output + lane];
        if (call.residual != nullptr) value[lane] += call.residual[at + lane];
        call.out[at + lane] = value[lane];
    }
}

template <int KIND, int FIXED>
void strips(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
            std::int64_t count) {
    const std::int64_t bytes = strip_bytes(KIND, call.x.inputs), chunks = call.x.inputs / block_inputs(KIND);
    const std::int64_t rows = FIXED == 0 ? count : FIXED;
    Sums<FIXED == 0 ? MOST_PANEL : FIXED> sums;
    for (std::int64_t strip = first; strip < last; ++strip) {
        for (std::int64_t r = 0; r < rows; ++r) sums.sum[r] = _mm256_setzero_ps();
        const std::uint8_t* chunk = part.packed + strip * bytes;
        for (std::int64_t i = 0; i < chunks; ++i, chunk += block_bytes(KIND) * STRIP_OUTPUTS) {
            add_chunk<KIND, FIXED>(call.x, row, count, i * (block_inputs(KIND) / GROUP_INPUTS), chunk, sums);
        }
        const std::int64_t done = strip * STRIP_OUTPUTS;
        for (std::int64_t r = 0; r < rows; ++r) finish(call, row + r, offset + done, part.outputs - done, sums.sum[r]);
    }
}

template <int KIND>
void some_strips(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t row,
                 std::int64_t count) {
    if (count == 1) return strips<KIND, 1>(call, part, offset, first, last, row, count);
    if (count == 2) return strips<KIND, 2>(call, part, offset, first, last, row, count);
    return strips<KIND, 0>(call, part, offset, first, last, row, count);
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
