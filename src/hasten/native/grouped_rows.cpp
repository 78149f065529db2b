// Rounding of rows in groups of 32 inputs, at one level; every level gives the same bits.
#include <cfloat>

#include "grouped.h"
#include "lanes.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

// The largest lane, in any order: a maximum has no rounding.
INLINE float top_of(Floats value) {
    Part top = value.part[0];
    for (int i = 1; i < PARTS; ++i) top = part_most(top, value.part[i]);
    float lane[WIDTH];
    part_store(lane, top);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i] < lane[i + half] ? lane[i + half] : lane[i];
    return lane[0];
}

// Integers of half a group as bytes; their sum.
INLINE std::int32_t put_half(Floats scaled, std::int8_t* codes) {
    const Floats value = least(most(scaled, all(-127.0f)), all(127.0f));
    const Ints rounded = bits(value + all(ROUNDER));
    IntPart total = {};
    EACH(i) total += rounded.part[i] - ROUNDER_BITS;
    store_bytes(codes, rounded);
    std::int32_t sum = 0;
    for (int lane = 0; lane < WIDTH; ++lane) sum += total[lane];
    return sum;
}

}  // namespace

void round_groups(const float* x, const GroupedRows& rounded, std::int64_t first, std::int64_t last) {
    const std::int64_t groups = rounded.groups();
    for (std::int64_t i = first * groups; i < last * groups; ++i) {
        const std::int64_t at = rounded.at(i / groups, i % groups);
        const Floats low = load(x + i * GROUP_INPUTS), high = load(x + i * GROUP_INPUTS + LANES);
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
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
