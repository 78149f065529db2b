// Four-bit weights to int8, one output tile of one input tile at a time.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace hasten {
namespace {

// Both bytes of a 16-bit lane belong to one output, and nibble * scale fits a byte, so one 16-bit product makes two weights.
inline void unpack_tile(const std::int8_t* nibbles, const std::int8_t* scales, const std::int8_t* offsets, std::int8_t* out) {
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    const __m512i first_byte = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000);
    const __m512i scale = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
    const __m512i offset = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(offsets)));
    const __m512i scale_pairs = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    const __m512i offset_bytes = _mm512_shuffle_epi8(offset, first_byte);
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line) {
        const __m512i both = _mm512_load_si512(nibbles + line * 64);
        const __m512i even = _mm512_and_si512(both, low_nibbles);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_nibbles);
        _mm512_store_si512(out + line * 128, _mm512_add_epi8(_mm512_mullo_epi16(even, scale_pairs), offset_bytes));
        _mm512_store_si512(out + line * 128 + 64, _mm512_add_epi8(_mm512_mullo_epi16(odd, scale_pairs), offset_bytes));
    }
}

inline void unpack_pair(const std::int8_t* packed, std::int8_t* out) {
    unpack_tile(packed, packed + SCALES_AT, packed + OFFSETS_AT, out);
    unpack_tile(packed + NIBBLES_BYTES, packed + SCALES_AT + 16, packed + OFFSETS_AT + 16, out + TILE_BYTES);
}

template <int DISTANCE>
inline void prefetch_nibbles(const std::int8_t* packed) {
#pragma GCC unroll 17
    for (int line = 0; line < 17; ++line) _mm_prefetch(reinterpret_cast<const char*>(packed + DISTANCE + line * 64), _MM_HINT_T0);
}

// Input tiles [0, tiles) of a pair.
inline void unpack_pairs(const std::int8_t* packed, std::int64_t tiles, std::int8_t* out) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        prefetch_nibbles<4352>(packed + tile * PAIR_BYTES_4);
        unpack_pair(packed + tile * PAIR_BYTES_4, out + tile * PAIR_BYTES);
    }
}

}  // namespace
}  // namespace hasten
