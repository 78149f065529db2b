// The float half of a linear layer for the AVX-512 and AMX kernels.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace hasten {
namespace {

// Sums of one row, outputs from `from` on, as floats.
inline __m512 scaled(const Linear8& call, std::int64_t row, std::int64_t from, __m512i sums, __mmask16 mask) {
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_maskz_loadu_ps(mask, call.scale + from));
    value = _mm512_mul_ps(value, _mm512_set1_ps(call.row_scale[row]));
    return call.bias == nullptr ? value : _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, call.bias + from));
}

// 32 sums of one row, outputs from `output` on, scaled and stored.
inline void finish_pair(const Linear8& call, std::int64_t row, std::int64_t output, __m512i low, __m512i high) {
    const __m512i sums[2] = {low, high};
    for (int half = 0; half < 2; ++half) {
        const std::int64_t from = output + half * TILE_OUTPUTS, left = call.outputs - from;
        if (left <= 0) return;
        const __mmask16 mask = left >= TILE_OUTPUTS ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
        const std::int64_t at = row * call.out_stride + from;
        __m512 value = scaled(call, row, from, sums[half], mask);
        if (call.residual != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, call.residual + at));
        _mm512_mask_storeu_ps(call.out + at, mask, value);
    }
}

}  // namespace
}  // namespace hasten
