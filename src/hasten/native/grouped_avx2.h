// What the AVX2 kernels for few and for many rows share: half a strip, eight outputs, in the lanes of a register, four inputs an output
// and instruction. Unsigned codes keep 16-bit sums of products from saturating: 15 * 127 * 16, 31 * 127 * 8 and 63 * 127 * 4 stay below
// 2^15. Eight-bit codes are multiplied by their size with the row's code under their sign, two products at a time.
#pragma once

#include <immintrin.h>

#include "fetch.h"
#include "grouped.h"

namespace hasten {
namespace {

#define INLINE inline __attribute__((always_inline))

const int VECTORS = 8;         // of a group: eight outputs by four inputs each

INLINE __m256i bytes_at(const std::uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

INLINE __m256 halves_at(const std::uint8_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

INLINE __m256i four_inputs(const std::int8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

// Keeps the compiler from adding up in another order: it would hold all products at once, far more than there are registers.
INLINE __m256i in_order(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

// Bits that stand at `bit` of each byte, moved to position 4 and masked.
INLINE __m256i to_fifth(__m256i bits, int bit, __m256i mask) {
    return _mm256_and_si256(bit < 4 ? _mm256_slli_epi16(bits, 4 - bit) : _mm256_srli_epi16(bits, bit - 4), mask);
}

// Vector `i` of half a group's codes, of the half at whose first line `group` points. `i` must be known when this is compiled.
template <int KIND>
INLINE __m256i codes_at(const std::uint8_t* group, int i) {
    if (code_bits(KIND) == 8) return bytes_at(group + i * 64);
    const __m256i both = bytes_at(group + (code_bits(KIND) - 4 + i % 4) * 64), nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(i < 4 ? both : _mm256_srli_epi16(both, 4), nibble);
    if (code_bits(KIND) == 5) return _mm256_or_si256(low, to_fifth(bytes_at(group), i, _mm256_set1_epi8(16)));
    if (code_bits(KIND) == 6) return _mm256_or_si256(low, to_fifth(bytes_at(group + i / 4 * 64), i % 4 * 2, _mm256_set1_epi8(48)));
    return low;
}

// The codes of one group.
template <int KIND>
INLINE void unpack(const std::uint8_t* group, __m256i* codes) {
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) codes[i] = codes_at<KIND>(group, i);
}

// What the sums of a group's products are multiplied by: 1, or the integer scale of the group (Q6_K: of each half).
struct Factors {
    __m256i first, second, pairs;
};

// The integer scales and minimums of half a chunk, a line of eight outputs for each group.
struct alignas(32) Integers {
    std::uint8_t scales[64], minimums[64];
};

INLINE void six_bits(const std::uint8_t* chunk, int half, Integers& out) {
    const std::uint8_t* planes = chunk + 64 + 32 * half;
    const __m256i first = bytes_at(planes), second = bytes_at(planes + 64), third = bytes_at(planes + 128);
    const __m256i low = _mm256_set1_epi8(63), nibble = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48);
    auto put = [](std::uint8_t* to, __m256i value) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), value); };
    put(out.scales, _mm256_and_si256(first, low));
    put(out.minimums, _mm256_and_si256(second, low));
    put(out.scales + 32, _mm256_or_si256(_mm256_and_si256(third, nibble), _mm256_and_si256(_mm256_srli_epi16(first, 2), top)));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(third, 4), nibble);
    put(out.minimums + 32, _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi16(second, 2), top)));
}

template <int KIND>
INLINE Factors factors_of(const std::uint8_t* chunk, int half, const Integers& integers, int group) {
    if (!has_super_blocks(KIND)) return {_mm256_set1_epi16(1), _mm256_setzero_si256(), _mm256_setzero_si256()};
    if (KIND == Q6_K) {
        const __m256i pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(chunk + 32 + group * 32 + 16 * half)));
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

constexpr bool is_lowered(int kind) { return has_minimum(kind) || zero_code(kind) != 0; }

// The float minimum of a flat format's group; the float scale of a super-block's minimums.
template <int KIND>
INLINE __m256 low_of(const std::uint8_t* chunk, int half, __m256 d) {
    return has_minimum(KIND) ? halves_at(chunk + 32 + 16 * half) : _mm256_mul_ps(d, _mm256_set1_ps(static_cast<float>(-zero_code(KIND))));
}

INLINE __m256 minimum_of(const Integers& integers, int group) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(integers.minimums + group * 8))));
}

INLINE void prefetch(const std::uint8_t* from, std::int64_t bytes) {
    for (int line = 0; line < bytes; line += 64) fetch_line(from + line);
}

inline void finish(const GroupedCall& call, std::int64_t row, std::int64_t output, std::int64_t left, __m256 sum) {
    float value[8];
    _mm256_storeu_ps(value, sum);
    const std::int64_t count = left < HALF_OUTPUTS ? left : HALF_OUTPUTS, at = row * call.outputs + output;
    for (std::int64_t lane = 0; lane < count; ++lane) {
        if (call.bias != nullptr) value[lane] += call.bias[output + lane];
        if (call.residual != nullptr) value[lane] += call.residual[at + lane];
        call.out[at + lane] = value[lane];
    }
}

}  // namespace
}  // namespace hasten
