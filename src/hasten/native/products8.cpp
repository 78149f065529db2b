// Integer products of queries with keys and of weights with values, at one level: VNNI where there is AVX-512, plain loops elsewhere.
#include "attention8.h"
#include "lanes.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

#if defined(__AVX512VNNI__)

INLINE __m512i repeat_four(const void* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

// Queries are moved by 128 to be unsigned; 128 times the sums of the keys is taken out again.
template <int COUNT>
void some_scores(const std::int8_t* queries, std::int64_t dim, const std::int8_t* tile, std::int32_t* out, std::int64_t stride) {
    const __m512i move = _mm512_set1_epi8(-128);
    for (int keys = 0; keys < 64; keys += 16) {
        __m512i sums[COUNT] = {}, moved = _mm512_setzero_si512();
        for (std::int64_t d = 0; d < dim; d += 4) {
            const __m512i key = _mm512_loadu_si512(tile + d * 64 + keys * 4);
            moved = _mm512_dpbusd_epi32(moved, move, key);
#pragma GCC unroll 8
            for (int q = 0; q < COUNT; ++q) {
                sums[q] = _mm512_dpbusd_epi32(sums[q], _mm512_xor_si512(repeat_four(queries + q * dim + d), move), key);
            }
        }
        for (int q = 0; q < COUNT; ++q) _mm512_storeu_si512(out + q * stride + keys, _mm512_sub_epi32(sums[q], moved));
    }
}

template <int COUNT>
void some_mixes(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t dim, const std::int8_t* const* tiles,
                std::int64_t some, std::int32_t* out) {
    for (std::int64_t d = 0; d < dim; d += 16) {
        __m512i tops[COUNT] = {}, rests[COUNT] = {};
        for (std::int64_t tile = 0; tile < some; ++tile) {
            for (std::int64_t four = 0; four < 16; ++four) {
                const __m512i value = _mm512_loadu_si512(tiles[tile] + (four * dim + d) * 4);
                const std::int64_t at = tile * 64 + four * 4;
#pragma GCC unroll 8
                for (int q = 0; q < COUNT; ++q) {
                    tops[q] = _mm512_dpbusd_epi32(tops[q], repeat_four(high + q * stride + at), value);
                    rests[q] = _mm512_dpbusd_epi32(rests[q], repeat_four(low + q * stride + at), value);
                }
            }
        }
        for (int q = 0; q < COUNT; ++q) {
            _mm512_storeu_si512(out + q * dim + d, tops[q]);
            _mm512_storeu_si512(out + (QUERIES8 + q) * dim + d, rests[q]);
        }
    }
}

#else

template <int COUNT>
void some_scores(const std::int8_t* queries, std::int64_t dim, const std::int8_t* tile, std::int32_t* out, std::int64_t stride) {
    for (int q = 0; q < COUNT; ++q) {
        std::int32_t sums[64] = {};
        for (std::int64_t d = 0; d < dim; d += 4) {
            const std::int8_t* four = queries + q * dim + d;
            const std::int8_t* line = tile + d * 64;
            for (int key = 0; key < 64; ++key) {
                for (int i = 0; i < 4; ++i) sums[key] += std::int32_t(four[i]) * line[key * 4 + i];
            }
        }
        for (int key = 0; key < 64; ++key) out[q * stride + key] = sums[key];
    }
}

template <int COUNT>
void some_mixes(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t dim, const std::int8_t* const* tiles,
                std::int64_t some, std::int32_t* out) {
    for (int q = 0; q < COUNT; ++q) {
        std::int32_t* tops = out + q * dim;
        std::int32_t* rests = out + (QUERIES8 + q) * dim;
        for (std::int64_t d = 0; d < dim; ++d) tops[d] = rests[d] = 0;
        for (std::int64_t four = 0; four < 16 * some; ++four) {
            const std::uint8_t* a = high + q * stride + four * 4;
            const std::uint8_t* b = low + q * stride + four * 4;
            if ((a[0] | a[1] | a[2] | a[3] | b[0] | b[1] | b[2] | b[3]) == 0) continue;
            const std::int8_t* line = tiles[four / 16] + four % 16 * dim * 4;
            for (std::int64_t d = 0; d < dim; ++d) {
                for (int i = 0; i < 4; ++i) {
                    tops[d] += std::int32_t(a[i]) * line[d * 4 + i];
                    rests[d] += std::int32_t(b[i]) * line[d * 4 + i];
                }
            }
        }
    }
}

#endif

void scores(const std::int8_t* queries, std::int64_t count, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some,
            std::int32_t* out, std::int64_t stride) {
    for (std::int64_t tile = 0; tile < some; ++tile, out += 64) {
        std::int64_t q = 0;
        for (; q + 8 <= count; q += 8) some_scores<8>(queries + q * dim, dim, tiles[tile], out + q * stride, stride);
        for (; q + 3 <= count; q += 3) some_scores<3>(queries + q * dim, dim, tiles[tile], out + q * stride, stride);
        for (; q < count; ++q) some_scores<1>(queries + q * dim, dim, tiles[tile], out + q * stride, stride);
    }
}

void mix(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t count, std::int64_t dim,
         const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out) {
    std::int64_t q = 0;
    for (; q + 8 <= count; q += 8) some_mixes<8>(high + q * stride, low + q * stride, stride, dim, tiles, some, out + q * dim);
    for (; q + 3 <= count; q += 3) some_mixes<3>(high + q * stride, low + q * stride, stride, dim, tiles, some, out + q * dim);
    for (; q < count; ++q) some_mixes<1>(high + q * stride, low + q * stride, stride, dim, tiles, some, out + q * dim);
}

}  // namespace

const Products8 products8 = {scores, mix};

}  // namespace HASTEN_LEVEL
}  // namespace hasten
