// Codes of few bits (linear.h) in registers of 64: as bytes, and unpacked to int8 weights, one output tile of one input tile at a time.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace hasten {
namespace {

// Line `line` (0 to 15) of a block's codes. It is known when this is compiled, wherever loops over it are unrolled.
template <int BITS>
inline __attribute__((always_inline)) __m512i codes_of(const std::int8_t* block, int line) {
    const std::int8_t* eight = block + line / 8 * 64 * BITS;
    const int place = line % 8;
    if (BITS == 4) {
        const __m512i both = _mm512_load_si512(eight + place / 2 * 64);
        return _mm512_and_si512(place % 2 == 0 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
    }
    if (place < 6) {
        const __m512i both = _mm512_load_si512(eight + place / 2 * 64);
        return _mm512_and_si512(place % 2 == 0 ? both : _mm512_srli_epi16(both, 3), _mm512_set1_epi8(7));
    }
    const __m512i low = _mm512_srli_epi16(_mm512_load_si512(eight + place % 2 * 64), 6);
    const __m512i last = _mm512_load_si512(eight + 128), high = place == 6 ? _mm512_srli_epi16(last, 4) : _mm512_srli_epi16(last, 5);
    return _mm512_and_si512(_mm512_ternarylogic_epi32(_mm512_set1_epi8(3), low, high, 0xca), _mm512_set1_epi8(7));
}

// Both bytes of a 16-bit lane belong to one output, and code * scale fits a byte, so one 16-bit product makes two weights.
template <int BITS>
inline void unpack_group(const std::int8_t* block, int group, const std::int8_t* scales, const std::int8_t* offsets, std::int8_t* out) {
    const __m512i first_byte = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000);
    const __m512i scale = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
    const __m512i offset = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(offsets)));
    const __m512i scale_pairs = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    const __m512i offset_bytes = _mm512_shuffle_epi8(offset, first_byte);
#pragma GCC unroll 8
    for (int line = group * 8; line < group * 8 + 8; ++line) {
        _mm512_store_si512(out + line * 64, _mm512_add_epi8(_mm512_mullo_epi16(codes_of<BITS>(block, line), scale_pairs), offset_bytes));
    }
}

template <int BITS>
inline void unpack_pair(const std::int8_t* packed, std::int8_t* out) {
#pragma GCC unroll 4
    for (int part = 0; part < 2 * TILE_GROUPS; ++part) {
        const int half = part / 2, group = part % 2;
        const std::int8_t *scales = packed + scales_at(BITS, group), *offsets = packed + offsets_at(BITS, group);
        unpack_group<BITS>(packed + half * tile_bytes(BITS), group, scales + half * TILE_OUTPUTS, offsets + half * TILE_OUTPUTS, out + half * TILE_BYTES);
    }
}

// A pair's bytes, seven input tiles ahead.
template <int BITS>
inline void prefetch_pair(const std::int8_t* packed) {
    constexpr int LINES = static_cast<int>(pair_bytes(BITS) / 64);
#pragma GCC unroll 18
    for (int line = 0; line < LINES; ++line) _mm_prefetch(reinterpret_cast<const char*>(packed + 7 * pair_bytes(BITS) + line * 64), _MM_HINT_T1);
}

// Input tiles [0, tiles) of a pair.
template <int BITS>
inline void unpack_pairs(const std::int8_t* packed, std::int64_t tiles, std::int8_t* out) {
    for (std::int64_t tile = 0; tile < tiles; ++tile, packed += pair_bytes(BITS), out += PAIR_BYTES) {
        prefetch_pair<BITS>(packed);
        unpack_pair<BITS>(packed, out);
    }
}

}  // namespace
}  // namespace hasten
