// The row kernels at one level; see lanes.h for why every level gives the same bits.
#include "rows.h"
#include "transform.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

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

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(std::uint16_t* to, float value) { *to = to_bf16(value); }
INLINE void put(Half* to, float value) { *to = to_half(value); }

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
    if (work.element == FLOAT16) return rotary<Half>(work, first, last);
    return work.element == BFLOAT16 ? rotary<std::uint16_t>(work, first, last) : rotary<float>(work, first, last);
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
