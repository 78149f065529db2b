// Rounding of rows in groups of 32 inputs, at one level; every level gives the same bits.
#include <cfloat>

#include "grouped.h"
#include "lanes.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

// The largest lane and the sum of integer lanes, in any order: neither has any rounding.
#if defined(__AVX512F__)
INLINE float top_of(Part top) { return _mm512_reduce_max_ps(top); }
INLINE std::int32_t sum_of(IntPart total) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(total)); }
#elif defined(__AVX2__)
INLINE float top_of(Part top) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE std::int32_t sum_of(IntPart total) {
    const auto eight = reinterpret_cast<__m256i>(total);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
#else
INLINE float top_of(Part top) {
    float largest = top[0];
    for (int lane = 1; lane < WIDTH; ++lane) largest = largest < top[lane] ? top[lane] : largest;
    return largest;
}
INLINE std::int32_t sum_of(IntPart total) {
    std::int32_t sum = 0;
    for (int lane = 0; lane < WIDTH; ++lane) sum += total[lane];
    return sum;
}
#endif

INLINE float top_of(Floats value) {
    Part top = value.part[0];
    for (int i = 1; i < PARTS; ++i) top = part_most(top, value.part[i]);
    return top_of(top);
}

// Integers of half a group as bytes; their sum.
INLINE std::int32_t put_half(Floats scaled, std::int8_t* codes) {
    const Floats value = least(most(scaled, all(-127.0f)), all(127.0f));
    const Ints rounded = bits(value + all(ROUNDER));
    IntPart total = {};
    EACH(i) total += rounded.part[i] - ROUNDER_BITS;
    store_bytes(codes, rounded);
    return sum_of(total);
}

}  // namespace

// A row that holds NaN or an infinity gets a scale that is NaN, so that what comes of it is seen to be none.
void round_groups(const float* x, const GroupedRows& rounded, std::int64_t first, std::int64_t last) {
    const std::int64_t groups = rounded.groups();
    for (std::int64_t row = first; row < last; ++row) {
        Floats nothing = all(0.0f);
        for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t at = rounded.at(row, group);
            const float* from = x + (row * groups + group) * GROUP_INPUTS;
            const Floats low = load(from), high = load(from + LANES);
            nothing = nothing + low * all(0.0f) + high * all(0.0f);
            const float limit = top_of(most(magnitude(low), magnitude(high)));
            const float bounded = limit > FLT_MIN * 128.0f ? (limit < FLT_MAX ? limit : FLT_MAX) : FLT_MIN * 128.0f;
            const Floats factor = all(127.0f / bounded);
            const std::int32_t one = put_half(low * factor, rounded.codes + at * GROUP_INPUTS);
            const std::int32_t other = put_half(high * factor, rounded.codes + at * GROUP_INPUTS + LANES);
            rounded.scale[at] = bounded / 127.0f;
            rounded.scaled_sum[at] = rounded.scale[at] * static_cast<float>(one + other);
            rounded.half_sums[2 * at] = static_cast<std::int16_t>(one);
            rounded.half_sums[2 * at + 1] = static_cast<std::int16_t>(other);
        }
        if (const float none = sum(nothing); none != 0.0f) rounded.scale[rounded.at(row, 0)] = none;
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
