// What the kernels of rows and of caches share at one level: norms, Walsh-Hadamard transforms, rounding, rotary embedding.
#pragma once

#include <cfloat>

#include "lanes.h"
#include "rows.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

// Sixteen lanes from `from`, zero behind the `left` that exist.
INLINE Floats load_some(const float* from, std::int64_t left) {
    if (left >= LANES) return load(from);
    float lane[LANES] = {};
    for (std::int64_t i = 0; i < left; ++i) lane[i] = from[i];
    return load(lane);
}

INLINE void store_some(float* to, std::int64_t left, Floats value) {
    if (left >= LANES) return store(to, value);
    float lane[LANES];
    store(lane, value);
    for (std::int64_t i = 0; i < left; ++i) to[i] = lane[i];
}

// 1 / rms: lane sums in order, one tree at the end.
inline float inverse_rms(const float* x, std::int64_t count, float eps) {
    Floats total = all(0.0f);
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Floats value = load_some(x + i, count - i);
        total = total + value * value;
    }
    return 1.0f / std::sqrt(sum(total) / static_cast<float>(count) + eps);
}

// Sums and differences of lanes that are STEP apart within a part: partner + x where the lane's bit is clear, partner - x where set.
template <int STEP>
INLINE Part butterfly(Part x) {
    Part sign;
    for (int i = 0; i < WIDTH; ++i) sign[i] = (i & STEP) ? -1.0f : 1.0f;
#if defined(__clang__)
    Part partner;
    for (int i = 0; i < WIDTH; ++i) partner[i] = x[i ^ STEP];
#else
    IntPart from;
    for (int i = 0; i < WIDTH; ++i) from[i] = i ^ STEP;
    const Part partner = __builtin_shuffle(x, from);
#endif
    return partner + x * sign;
}

INLINE Part within_part(Part x) {
    x = butterfly<1>(x);
    if (WIDTH > 2) x = butterfly<2>(x);
    if (WIDTH > 4) x = butterfly<WIDTH / 2 >= 4 ? 4 : 1>(x);
    if (WIDTH > 8) x = butterfly<WIDTH / 2 >= 8 ? 8 : 1>(x);
    return x;
}

// The transform of as many values as registers hold, which read and write them once.
constexpr int REGISTERS = WIDTH == 16 ? 16 : 8;

INLINE void transform_registers(float* x) {
    Part part[REGISTERS];
#pragma GCC unroll 16
    for (int i = 0; i < REGISTERS; ++i) part[i] = within_part(part_load(x + i * WIDTH));
#pragma GCC unroll 4
    for (int step = 1; step < REGISTERS; step *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < REGISTERS; ++i) {
            if (i & step) continue;
            const Part a = part[i], b = part[i + step];
            part[i] = a + b;
            part[i + step] = a - b;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < REGISTERS; ++i) part_store(x + i * WIDTH, part[i]);
}

// Steps from `step` on, over values that are `step` apart, whole parts at a time.
inline void wide_steps(float* x, std::int64_t block, std::int64_t step) {
    for (; step < block; step *= 2) {
        for (std::int64_t base = 0; base < block; base += 2 * step) {
            for (std::int64_t i = base; i < base + step; i += WIDTH) {
                const Part a = part_load(x + i), b = part_load(x + i + step);
                part_store(x + i, a + b);
                part_store(x + i + step, a - b);
            }
        }
    }
}

// Unscaled Walsh-Hadamard transform of each block, steps 1, 2, 4, ... in this order at every level.
inline void transform(float* x, std::int64_t count, std::int64_t block) {
    const std::int64_t held = REGISTERS * WIDTH;
    for (std::int64_t base = 0; base < count; base += block) {
        if (block >= held) {
            for (std::int64_t i = 0; i < block; i += held) transform_registers(x + base + i);
            wide_steps(x + base, block, held);
            continue;
        }
        if (block >= LANES) {
            for (std::int64_t i = 0; i < block; i += WIDTH) part_store(x + base + i, within_part(part_load(x + base + i)));
            wide_steps(x + base, block, WIDTH);
            continue;
        }
        for (std::int64_t step = 1; step < block; step *= 2) {
            for (std::int64_t i = 0; i < block; ++i) {
                if (i & step) continue;
                const float a = x[base + i], b = x[base + i + step];
                x[base + i] = a + b;
                x[base + i + step] = a - b;
            }
        }
    }
}

inline Extent extent_of(const float* x, std::int64_t count) {
    Floats top = all(0.0f), nothing = all(0.0f);
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Floats value = load_some(x + i, count - i);
        top = most(top, magnitude(value));
        nothing = nothing + value * all(0.0f);
    }
    return {highest(top), sum(nothing)};
}

// Some inputs of a row as int8, and the row's scale, from the extent of the whole row; `length` is what the transform left out: the true
// values are x * length. A row that holds NaN or an infinity gets the scale NaN, so that what comes of it is seen to be none.
inline float round_inputs(const float* x, std::int64_t count, Extent row, float length, std::int8_t* codes) {
    const float bounded = row.top > FLT_MIN * 128.0f ? (row.top < FLT_MAX ? row.top : FLT_MAX) : FLT_MIN * 128.0f;
    const Floats factor = all(127.0f / bounded);
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Floats value = least(most(load_some(x + i, count - i) * factor, all(-127.0f)), all(127.0f));
        const Ints rounded = bits(value + all(ROUNDER));
        if (count - i >= LANES) {
            store_bytes(codes + i, rounded);
            continue;
        }
        std::int8_t some[LANES];
        store_bytes(some, rounded);
        for (std::int64_t j = 0; j < count - i; ++j) codes[i + j] = some[j];
    }
    return bounded * length / 127.0f + row.nothing;
}

// One head: norm (where there is a weight), then rotation of the pairs (i, i + head_dim / 2).
INLINE void turn_head(const float* x, const float* weight, float eps, const float* cosine, const float* sine, std::int64_t dim, float* out) {
    const std::int64_t half = dim / 2;
    float normed[512];
    if (weight != nullptr) {
        const float factor = inverse_rms(x, dim, eps);
        for (std::int64_t i = 0; i < dim; ++i) normed[i] = x[i] * factor * weight[i];
        x = normed;
    }
    std::int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const Floats first = load(x + i), second = load(x + i + half), turn = load(cosine + i), lift = load(sine + i);
        store(out + i, first * turn - second * lift);
        store(out + i + half, second * turn + first * lift);
    }
    for (; i < half; ++i) {
        const float first = x[i], second = x[i + half];
        out[i] = first * cosine[i] - second * sine[i];
        out[i + half] = second * cosine[i] + first * sine[i];
    }
}

}  // namespace
}  // namespace HASTEN_LEVEL
}  // namespace hasten
