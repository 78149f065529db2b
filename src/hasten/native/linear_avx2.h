// What the AVX2 linear kernels for int8 weights and for those of fewer bits share.
//
// A few rows walk a pair's weights (32 outputs) in the order in which they lie; more rows run as in linear_panel.h.
#pragma once

#include <immintrin.h>

#include "linear_panel.h"

namespace hasten {
namespace {

const std::int64_t AHEAD_BYTES = 2048;  // how far the weights of few rows are fetched before use

INLINE __m256i load32(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
INLINE void store32(void* to, __m256i value) { _mm256_store_si256(static_cast<__m256i*>(to), value); }

INLINE __m256i repeat_int(const void* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

// The compiler may not look through this: it would regroup sums until they no longer fit the registers.
INLINE void keep(__m256i& value) { __asm__("" : "+x"(value)); }

// What comes AHEAD_BYTES behind some lines that are used now.
template <int LINES>
INLINE void fetch_ahead(const std::int8_t* from) {
#pragma GCC unroll 17
    for (int line = 0; line < LINES; ++line) fetch_line(from + AHEAD_BYTES + line * 64);
}

// Floats that exist are loaded and stored as they are; masks, which are slow to store, serve the last outputs only.
struct Whole {
    INLINE __m256 load(const float* from) const { return _mm256_loadu_ps(from); }
    INLINE void store(float* to, __m256 value) const { _mm256_storeu_ps(to, value); }
};
struct Partly {
    __m256i mask;
    INLINE __m256 load(const float* from) const { return _mm256_maskload_ps(from, mask); }
    INLINE void store(float* to, __m256 value) const { _mm256_maskstore_ps(to, mask, value); }
};

template <class Lanes>
INLINE void scale_and_store(const Linear8& call, std::int64_t row, std::int64_t output, __m256i sums, Lanes lanes) {
    const std::int64_t at = row * call.out_stride + output;
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), lanes.load(call.scale + output));
    __m256 value = _mm256_mul_ps(scaled, _mm256_set1_ps(call.row_scale[row]));
    if (call.bias != nullptr) value = _mm256_add_ps(value, lanes.load(call.bias + output));
    if (call.residual != nullptr) value = _mm256_add_ps(value, lanes.load(call.residual + at));
    lanes.store(call.out + at, value);
}

// Eight sums of one row, outputs from `output` on, scaled and stored: the order of operations is the portable kernel's.
INLINE void finish_eight(const Linear8& call, std::int64_t row, std::int64_t output, __m256i sums) {
    const std::int64_t left = call.outputs - output;
    if (left >= 8) return scale_and_store(call, row, output, sums, Whole{});
    if (left <= 0) return;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    scale_and_store(call, row, output, sums, Partly{_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), lanes)});
}

}  // namespace
}  // namespace hasten
