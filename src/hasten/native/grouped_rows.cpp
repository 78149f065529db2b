// Rounding of rows in groups of 32 inputs, at one level; every level gives the same bits.
#include <cfloat>

#include "grouped.h"
#include "row_parts.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

const std::int64_t TOGETHER = 16;  // groups that are made before they are rounded

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

// Whether no lane is NaN or infinite.
INLINE bool finite(Floats low, Floats high) {
    const Floats nothing = low * all(0.0f) + high * all(0.0f);
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(nothing.part[0], nothing.part[0], _CMP_UNORD_Q) == 0;
#elif defined(__AVX2__)
    const Part both = nothing.part[0] + nothing.part[1];
    return _mm256_movemask_ps(_mm256_cmp_ps(both, both, _CMP_UNORD_Q)) == 0;
#else
    return sum(nothing) == 0.0f;
#endif
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

// A group that holds NaN or an infinity gets a scale that is NaN, so that what comes of its row is seen to be none.
void round_groups(const RowWork& work, const GroupedRows& rounded, std::int64_t row, std::int64_t first, std::int64_t last) {
    const float factor_of_row = factor_of(work, row);
    float made[TOGETHER * GROUP_INPUTS];
    for (std::int64_t group = first; group < last; ++group) {
        const std::int64_t in_made = (group - first) % TOGETHER * GROUP_INPUTS, left = last - group < TOGETHER ? last - group : TOGETHER;
        if (in_made == 0) make_inputs(work, row, factor_of_row, group * GROUP_INPUTS, (group + left) * GROUP_INPUTS, made);
        const std::int64_t at = rounded.at(row, group);
        const Floats low = load(made + in_made), high = load(made + in_made + LANES);
        const float limit = top_of(most(magnitude(low), magnitude(high)));
        const float bounded = limit > FLT_MIN * 128.0f ? (limit < FLT_MAX ? limit : FLT_MAX) : FLT_MIN * 128.0f;
        const Floats factor = all(127.0f / bounded);
        const std::int32_t one = put_half(low * factor, rounded.codes + at * GROUP_INPUTS);
        const std::int32_t other = put_half(high * factor, rounded.codes + at * GROUP_INPUTS + LANES);
        rounded.scale[at] = finite(low, high) ? bounded / 127.0f : NAN;
        rounded.scaled_sum[at] = rounded.scale[at] * static_cast<float>(one + other);
        rounded.half_sums[2 * at] = static_cast<std::int16_t>(one);
        rounded.half_sums[2 * at + 1] = static_cast<std::int16_t>(other);
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
