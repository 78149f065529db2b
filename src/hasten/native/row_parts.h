// How rows are made at one level, for both ways of rounding them (by row, in groups).
#pragma once

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

// What all of a row's inputs are multiplied by.
inline float factor_of(const RowWork& work, std::int64_t row) {
    return work.source == NORM ? inverse_rms(work.x + row * work.inputs, work.inputs, work.eps) : 1.0f;
}

// Inputs [first, last) of a row, at to[0] and on; `first` is a multiple of 16.
inline void make_inputs(const RowWork& work, std::int64_t row, float scale, std::int64_t first, std::int64_t last, float* to) {
    const bool gated = work.source == GATE_SILU || work.source == GATE_GELU;
    const float* x = work.x + row * work.inputs * (gated ? 2 : 1);
    const float* up = x + work.inputs;
    const Floats factor = all(scale);
    for (std::int64_t i = first; i < last; i += LANES) {
        Floats value = load_some(x + i, last - i);
        if (work.source == NORM) value = value * factor * load_some(work.weight + i, last - i);
        if (work.source == GATE_SILU) value = silu(value) * load_some(up + i, last - i);
        if (work.source == GATE_GELU) value = gelu_tanh(value) * load_some(up + i, last - i);
        store_some(to + i - first, last - i, value);
    }
}

}  // namespace
}  // namespace HASTEN_LEVEL
}  // namespace hasten
