// How rough outputs are looked through, at one level. Noise is hashed for all outputs, but its logarithms are taken only where it is large
// enough for the LOOK outputs that it belongs to.
#include <cmath>

#include "lanes.h"
#include "noise.h"
#include "sketch.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

static_assert(LOOK == LANES, "what is looked at together is what is computed together");

// The largest of lanes of which none is NaN.
INLINE float top_lane(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(value.part[0]);
#else
    return highest(value);
#endif
}

INLINE bool any_above(Floats value, float limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(value.part[0], all(limit).part[0], _CMP_GT_OQ) != 0;
#else
    IntPart above = value.part[0] > part_all(limit);
    for (int i = 1; i < PARTS; ++i) above |= value.part[i] > part_all(limit);
#if defined(__AVX2__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(above)) != 0;
#else
    return (above[0] | above[1] | above[2] | above[3]) != 0;
#endif
#endif
}

// The most that each of LOOK outputs from `from` on may be for a row of this length.
INLINE Floats most_each(const Rough& rough, std::int64_t from, float length) {
    return load(rough.value + from) + all(length) * load(rough.error + from);
}

// The largest of value + length * error of up to LOOK outputs; -infinity where all are NaN.
INLINE float most_of(const Rough& rough, std::int64_t from, std::int64_t count, float length) {
    if (count == LOOK) return top_lane(most(all(-INFINITY), most_each(rough, from, length)));
    const float* value = rough.value + from;
    const float* error = rough.error + from;
    float most = -INFINITY;
    for (std::int64_t i = 0; i < count; ++i) most = value[i] + length * error[i] > most ? value[i] + length * error[i] : most;
    return most;
}

// Hands over, one by one, outputs whose score, as large as it may be for a row of this length, is above `least`, which may rise. `ids`:
// whose noise is theirs, where it is not that of their own numbers.
template <class Take>
INLINE void above(const Rough& rough, const Draw& draw, const std::int64_t* ids, float length, const double& least, Take take) {
    const Noise noise(draw.seed, draw.position);
    for (std::int64_t from = 0; from < rough.count; from += LOOK) {
        const std::int64_t some = rough.count - from < LOOK ? rough.count - from : LOOK;
        const double wanted = least - static_cast<double>(most_of(rough, from, some, length)) / draw.temperature;
        if (!(wanted <= Noise::MOST)) continue;  // nor where it is NaN
        std::uint64_t bits[LOOK], top = 0;
        if (ids == nullptr) {
            for (std::int64_t i = 0; i < LOOK; ++i) bits[i] = noise.bits(rough.first + from + i);
        } else {
            for (std::int64_t i = 0; i < LOOK; ++i) bits[i] = i < some ? noise.bits(ids[from + i]) : 0;
        }
        for (std::int64_t i = 0; i < LOOK; ++i) top = bits[i] > top ? bits[i] : top;
        if (Noise::at_most(top) < wanted) continue;
        const std::uint64_t bound = Noise::least_bits(wanted);
        for (std::int64_t i = 0; i < some; ++i) {
            if (bits[i] < bound) continue;
            const float value = rough.value[from + i] + length * rough.error[from + i];
            const double score = static_cast<double>(value) / draw.temperature + Noise::of(bits[i]);
            if (score > least) take(rough.first + from + i, score);
        }
    }
}

}  // namespace

void look_through(const Rough& rough, float length, std::int64_t width, std::int64_t kept, Place* places, float* bounds) {
    for (std::int64_t i = 0; i < kept; ++i) places[i] = {-INFINITY, -1};
    for (std::int64_t block = 0; block < rough.count; block += width) {
        const std::int64_t end = rough.count - block < width ? rough.count : block + width, whole = (end - block) / LOOK * LOOK + block;
        Floats bound = all(-INFINITY), top = bound;
        for (std::int64_t from = block; from < whole; from += LOOK) {
            bound = most(bound, most_each(rough, from, length));
            top = most(top, load(rough.value + from));
        }
        const float rest = most_of(rough, whole, end - whole, length), here = top_lane(bound);
        bounds[block / width] = rest > here ? rest : here;
        if (whole == end && !any_above(top, places[kept - 1].value)) continue;
        for (std::int64_t i = block; i < end; ++i) {
            if (rough.value[i] > places[kept - 1].value) insert({rough.value[i], rough.first + i}, kept, places);
        }
    }
}

Score best_drawn(const Rough& rough, const Draw& draw, double least) {
    Score best = {least, -1};
    above(rough, draw, nullptr, 0.0f, best.value, [&](std::int64_t output, double score) { best = {score, output}; });
    return best;
}

std::int64_t nearly_best(const Rough& rough, const Draw& draw, const std::int64_t* ids, double slack, std::int64_t most, Score* found) {
    double least = -INFINITY;
    std::int64_t count = 0;
    bool room = true;
    auto keep = [&] {
        std::int64_t kept = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            if (found[i].value >= least) found[kept++] = found[i];
        }
        count = kept;
    };
    above(rough, draw, ids, 0.0f, least, [&](std::int64_t output, double score) {
        if (score - slack > least) least = score - slack;
        if (count == most) keep();
        if (count == most) room = false;
        if (room) found[count++] = {score, output};
    });
    keep();
    return room ? count : -1;
}

void mark_drawn(const Rough& rough, const Draw& draw, float length, double limit, std::int64_t width, std::uint8_t* marks) {
    above(rough, draw, nullptr, length, limit, [&](std::int64_t output, double) { marks[output / width] = 1; });
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
