// The row kernels at one level; see lanes.h for why every level gives the same bits.
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
float inverse_rms(const float* x, std::int64_t count, float eps) {
    Floats total = all(0.0f);
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Floats value = load_some(x + i, count - i);
        total = total + value * value;
    }
    return 1.0f / std::sqrt(sum(total) / static_cast<float>(count) + eps);
}

INLINE Floats silu(Floats gate) { return gate / (all(1.0f) + exponential(all(0.0f) - gate)); }

// 0.5 g (1 + tanh z) = g / (1 + e^-2z) with z = sqrt(2 / pi) (g + 0.044715 g^3).
INLINE Floats gelu_tanh(Floats gate) {
    const Floats cubic = gate + all(0.044715f) * (gate * gate * gate);
    return gate / (all(1.0f) + exponential(all(-1.59576912f) * cubic));
}

void make_row(const RowWork& work, std::int64_t row, float* to) {
    const std::int64_t count = work.inputs;
    const bool gated = work.source == GATE_SILU || work.source == GATE_GELU;
    const float* x = work.x + row * count * (gated ? 2 : 1);
    if (work.source == NORM) {
        const Floats factor = all(inverse_rms(x, count, work.eps));
        for (std::int64_t i = 0; i < count; i += LANES) {
            store_some(to + i, count - i, load_some(x + i, count - i) * factor * load_some(work.weight + i, count - i));
        }
        return;
    }
    for (std::int64_t i = 0; i < count; i += LANES) {
        Floats value = load_some(x + i, count - i);
        if (work.source == GATE_SILU) value = silu(value) * load_some(x + count + i, count - i);
        if (work.source == GATE_GELU) value = gelu_tanh(value) * load_some(x + count + i, count - i);
        store_some(to + i, count - i, value);
    }
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

// Steps from `step` on, over values that are `step` apart, whole parts at a time.
void wide_steps(float* x, std::int64_t block, std::int64_t step) {
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
void transform(float* x, std::int64_t count, std::int64_t block) {
    for (std::int64_t base = 0; base < count; base += block) {
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

// Round a row to int8; `length` is what the transform left out: the true values are x * length.
void round_row(const float* x, std::int64_t count, float length, std::int8_t* codes, std::int64_t stride, float* scale) {
    Floats top = all(0.0f);
    for (std::int64_t i = 0; i < count; i += LANES) top = most(top, magnitude(load_some(x + i, count - i)));
    const float limit = highest(top);
    const float bounded = limit > FLT_MIN * 128.0f ? (limit < FLT_MAX ? limit : FLT_MAX) : FLT_MIN * 128.0f;
    const Floats factor = all(127.0f / bounded);
    *scale = bounded * length / 127.0f;
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Floats value = least(most(load_some(x + i, count - i) * factor, all(-127.0f)), all(127.0f));
        const Ints rounded = bits(value + all(ROUNDER));
        std::int32_t lane[LANES];
        EACH(part) *reinterpret_cast<LooseIntPart*>(lane + part * WIDTH) = rounded.part[part];
        const int some = count - i < LANES ? static_cast<int>(count - i) : LANES;
        if (some == LANES) {
            for (int j = 0; j < LANES; ++j) codes[i + j] = static_cast<std::int8_t>(lane[j] - ROUNDER_BITS);
        } else {
            for (int j = 0; j < some; ++j) codes[i + j] = static_cast<std::int8_t>(lane[j] - ROUNDER_BITS);
        }
    }
    for (std::int64_t i = count; i < stride; ++i) codes[i] = 0;
}

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(std::uint16_t* to, float value) { *to = to_bf16(value); }

// One head: norm (where there is a weight), then rotation of the pairs (i, i + head_dim / 2).
INLINE void turn_head(const float* x, const float* weight, float eps, const float* cosine, const float* sine, std::int64_t dim, float* out) {
    const std::int64_t half = dim / 2;
    float normed[512];
    if (weight != nullptr) {
        const float factor = inverse_rms(x, dim, eps);
        for (std::int64_t i = 0; i < dim; ++i) normed[i] = x[i] * factor * weight[i];
        x = normed;
    }
    for (std::int64_t i = 0; i < half; ++i) {
        const float first = x[i], second = x[i + half];
        out[i] = first * cosine[i] - second * sine[i];
        out[i + half] = second * cosine[i] + first * sine[i];
    }
}

template <class Element>
void rotary(const RotaryWork& work, std::int64_t first, std::int64_t last) {
    const std::int64_t dim = work.head_dim, width = (work.heads + 2 * work.kv_heads) * dim;
    auto* keys = static_cast<Element*>(work.keys);
    auto* values = static_cast<Element*>(work.values);
    float turned[512];
    for (std::int64_t row = first; row < last; ++row) {
        const float* x = work.qkv + row * width;
        const float* cosine = work.cosine + row * (dim / 2);
        const float* sine = work.sine + row * (dim / 2);
        for (std::int64_t head = 0; head < work.heads; ++head) {
            turn_head(x + head * dim, work.query_norm, work.eps, cosine, sine, dim, work.query + (row * work.heads + head) * dim);
        }
        const std::int64_t block = work.slots[row] / 64, offset = work.slots[row] % 64;
        for (std::int64_t head = 0; head < work.kv_heads; ++head) {
            turn_head(x + (work.heads + head) * dim, work.key_norm, work.eps, cosine, sine, dim, turned);
            const float* value = x + (work.heads + work.kv_heads + head) * dim;
            Element* key_to = keys + (block * work.kv_heads + head) * dim * 64 + offset;
            Element* value_to = values + ((block * work.kv_heads + head) * 64 + offset) * dim;
            for (std::int64_t i = 0; i < dim; ++i) put(key_to + i * 64, turned[i]);
            for (std::int64_t i = 0; i < dim; ++i) put(value_to + i, value[i]);
        }
    }
}

}  // namespace

void some_rows(const RowWork& work, std::int64_t first, std::int64_t last, float* room) {
    const bool rotated = work.block > 1;
    const float length = rotated ? 1.0f / std::sqrt(static_cast<float>(work.block)) : 1.0f;
    for (std::int64_t row = first; row < last; ++row) {
        float* made = work.codes == nullptr && !rotated ? work.out + row * work.inputs : room;
        make_row(work, row, made);
        if (rotated) transform(made, work.inputs, work.block);
        if (work.codes != nullptr) {
            round_row(made, work.inputs, length, work.codes + row * work.code_stride, work.code_stride, work.scale + row);
        } else if (rotated) {
            for (std::int64_t i = 0; i < work.inputs; ++i) work.out[row * work.inputs + i] = made[i] * length;
        }
    }
}

void rotary_rows(const RotaryWork& work, std::int64_t first, std::int64_t last) {
    return work.brain_float ? rotary<std::uint16_t>(work, first, last) : rotary<float>(work, first, last);
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
