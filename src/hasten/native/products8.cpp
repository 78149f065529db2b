// Integer products of queries with keys and of weights with values, at one level: VNNI where there is AVX-512, 16-bit multiply-adds
// where there is AVX2, plain loops elsewhere.
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
void some_scores(const std::int8_t* queries, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out,
                 std::int64_t stride) {
    const __m512i move = _mm512_set1_epi8(-128);
    for (std::int64_t keys = 0; keys < some * 64; keys += 16) {
        const std::int8_t* tile = tiles[keys / 64] + keys % 64 * 4;
        __m512i sums[COUNT] = {}, moved = _mm512_setzero_si512();
        for (std::int64_t d = 0; d < dim; d += 4) {
            const __m512i key = _mm512_loadu_si512(tile + d * 64);
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

#elif defined(__AVX2__)

const std::int64_t MOST_FACTORS = 1024;  // of one operand: head_dim, or the positions of 16 tiles
const int COLUMNS = 8;                   // at once: sums of six queries, their columns, a factor and a product fill 16 registers

typedef long long LooseLong __attribute__((may_alias, aligned(2)));

// out[q][0..8) (+)= factors[q][0..count) . columns, four factors a line: lines of 8 columns x 4 bytes, `stride` bytes apart. Factors fit
// 16 bits and sums of products 32, so nothing saturates. Lines of `next` are fetched meanwhile.
template <int COUNT, bool ADD>
INLINE void eight_columns(const std::int16_t* factors, std::int64_t count, const std::int8_t* columns, const std::int8_t* next,
                          std::int64_t stride, std::int32_t* out, std::int64_t out_stride) {
    __m256i left[COUNT], right[COUNT];
    for (int q = 0; q < COUNT; ++q) left[q] = right[q] = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < count; i += 4, columns += stride, next += stride) {
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
        const __m256i one = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns)));
        const __m256i other = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns + 16)));
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) {
            const __m256i factor = _mm256_set1_epi64x(*reinterpret_cast<const LooseLong*>(factors + q * MOST_FACTORS + i));
            left[q] = _mm256_add_epi32(left[q], _mm256_madd_epi16(one, factor));
            right[q] = _mm256_add_epi32(right[q], _mm256_madd_epi16(other, factor));
            // Query after query: where all factors are loaded first there are no registers left for the sums.
            asm volatile("" : "+x"(left[q]), "+x"(right[q]));
        }
    }
    for (int q = 0; q < COUNT; ++q) {  // two neighbouring halves make a sum
        auto* to = reinterpret_cast<__m256i*>(out + q * out_stride);
        const __m256i found = _mm256_permute4x64_epi64(_mm256_hadd_epi32(left[q], right[q]), 0xd8);
        _mm256_storeu_si256(to, ADD ? _mm256_add_epi32(_mm256_loadu_si256(to), found) : found);
    }
}

template <int COUNT>
void some_scores(const std::int8_t* queries, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out,
                 std::int64_t stride) {
    alignas(32) std::int16_t factors[COUNT * MOST_FACTORS];
    for (int q = 0; q < COUNT; ++q) {
        for (std::int64_t d = 0; d < dim; d += 16) {
            const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(queries + q * dim + d));
            _mm256_store_si256(reinterpret_cast<__m256i*>(factors + q * MOST_FACTORS + d), _mm256_cvtepi8_epi16(codes));
        }
    }
    for (std::int64_t tile = 0; tile < some; ++tile, out += 64) {
        const std::int8_t* next = tiles[tile + 1 < some ? tile + 1 : tile];
        for (int key = 0; key < 64; key += COLUMNS) {
            eight_columns<COUNT, false>(factors, dim, tiles[tile] + key * 4, next + key * 4, 256, out + key, stride);
        }
    }
}

// The whole sums go to the half of the low bytes; that of the high bytes stays zero.
template <int COUNT>
void some_mixes(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t dim, const std::int8_t* const* tiles,
                std::int64_t some, std::int32_t* out) {
    alignas(32) std::int16_t factors[COUNT * MOST_FACTORS];
    for (int q = 0; q < COUNT; ++q) {
        for (std::int64_t i = 0; i < some * 64; i += 16) {
            const __m256i tops = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high + q * stride + i)));
            const __m256i rests = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low + q * stride + i)));
            auto* to = reinterpret_cast<__m256i*>(factors + q * MOST_FACTORS + i);
            _mm256_store_si256(to, _mm256_or_si256(_mm256_slli_epi16(tops, 8), rests));
        }
        for (std::int64_t d = 0; d < dim; ++d) out[q * dim + d] = out[(QUERIES8 + q) * dim + d] = 0;
    }
    for (std::int64_t tile = 0; tile < some; ++tile) {
        const std::int8_t* next = tiles[tile + 1 < some ? tile + 1 : tile];
        for (std::int64_t d = 0; d < dim; d += COLUMNS) {
            eight_columns<COUNT, true>(factors + tile * 64, 64, tiles[tile] + d * 4, next + d * 4, dim * 4, out + QUERIES8 * dim + d, dim);
        }
    }
}

#else

template <int COUNT>
void some_scores(const std::int8_t* queries, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out,
                 std::int64_t stride) {
    for (std::int64_t q = 0; q < COUNT; ++q) {
        for (std::int64_t tile = 0; tile < some; ++tile) {
            std::int32_t sums[64] = {};
            for (std::int64_t d = 0; d < dim; d += 4) {
                const std::int8_t* four = queries + q * dim + d;
                const std::int8_t* line = tiles[tile] + d * 64;
                for (int key = 0; key < 64; ++key) {
                    for (int i = 0; i < 4; ++i) sums[key] += std::int32_t(four[i]) * line[key * 4 + i];
                }
            }
            for (int key = 0; key < 64; ++key) out[q * stride + tile * 64 + key] = sums[key];
        }
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

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
const std::int64_t MOST_QUERIES = 6;
#else
const std::int64_t MOST_QUERIES = 8;
#endif

// Queries in as few blocks as there must be, all of nearly one size.
template <class Function>
void in_blocks(std::int64_t count, Function function) {
    const std::int64_t blocks = (count + MOST_QUERIES - 1) / MOST_QUERIES;
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t first = count * block / blocks;
        function(first, count * (block + 1) / blocks - first);
    }
}

#define BY_COUNT(function, count, ...)                        \
    switch (count) {                                          \
        case 1: function<1>(__VA_ARGS__); break;              \
        case 2: function<2>(__VA_ARGS__); break;              \
        case 3: function<3>(__VA_ARGS__); break;              \
        case 4: function<4>(__VA_ARGS__); break;              \
        case 5: function<5>(__VA_ARGS__); break;              \
        case 6: function<6>(__VA_ARGS__); break;              \
        case 7: function<MOST_QUERIES - 1>(__VA_ARGS__); break; \
        default: function<MOST_QUERIES>(__VA_ARGS__); break;  \
    }

void scores(const std::int8_t* queries, std::int64_t count, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some,
            std::int32_t* out, std::int64_t stride) {
    in_blocks(count, [&](std::int64_t first, std::int64_t number) {
        BY_COUNT(some_scores, number, queries + first * dim, dim, tiles, some, out + first * stride, stride)
    });
}

void mix(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t count, std::int64_t dim,
         const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out) {
    in_blocks(count, [&](std::int64_t first, std::int64_t number) {
        BY_COUNT(some_mixes, number, high + first * stride, low + first * stride, stride, dim, tiles, some, out + first * dim)
    });
}

#undef BY_COUNT

}  // namespace

const Products8 products8 = {scores, mix};

}  // namespace HASTEN_LEVEL
}  // namespace hasten
