// AVX2, int8 weights: bytes widened to 16 bits, multiplied and added in pairs; nothing can saturate. Rows come widened already.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_avx2.h"

namespace hasten {
namespace {

const int SUM_PARTS = 8;  // vectors of a row's sums of one pair; each lane is half the sum of one output

INLINE __m256i widen(const std::int8_t* from) { return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from))); }

// Four inputs of a row, repeated.
INLINE __m256i repeat_inputs(const std::int16_t* from) {
    long long four;
    __builtin_memcpy(&four, from, 8);
    return _mm256_set1_epi64x(four);
}

// Two vectors of halves of sums to eight sums.
INLINE __m256i join(__m256i low, __m256i high) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8); }

// COUNT rows times eight outputs of a chunk, 16 steps of four inputs a tile.
template <int COUNT>
void columns(const std::int16_t* x, std::int64_t stride, const std::int16_t* weights, std::int64_t tiles, std::int32_t* sums, bool add,
             Ahead& ahead) {
    __m256i part[COUNT][2];
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
        part[r][0] = add ? load32(sums + r * SUM_PARTS * 8) : _mm256_setzero_si256();
        part[r][1] = add ? load32(sums + r * SUM_PARTS * 8 + 8) : _mm256_setzero_si256();
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        ahead.fetch();
#pragma GCC unroll 4
        for (int step = 0; step < 16; ++step, x += 4, weights += 32) {
            const __m256i low = load32(weights), high = load32(weights + 16);
#pragma GCC unroll 6
            for (int r = 0; r < COUNT; ++r) {
                const __m256i four = repeat_inputs(x + r * stride);
                part[r][0] = _mm256_add_epi32(part[r][0], _mm256_madd_epi16(four, low));
                part[r][1] = _mm256_add_epi32(part[r][1], _mm256_madd_epi16(four, high));
                keep(part[r][0]);
                keep(part[r][1]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
        store32(sums + r * SUM_PARTS * 8, part[r][0]);
        store32(sums + r * SUM_PARTS * 8 + 8, part[r][1]);
    }
}

struct Wide {
    static const std::int64_t CHUNK_TILES = 4, TILE_SIZE = PAIR_BYTES, ROOM_BYTES = 2 * PAIR_BYTES, COLUMNS = 4, ROW_SUMS = SUM_PARTS * 8;

    // [4 times eight outputs][16 steps a tile][2 vectors of 4 outputs x 4 inputs].
    static void prepare(const std::int8_t* weights, std::int64_t tiles, std::int8_t* room) {
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            for (int half = 0; half < 2; ++half) {
                for (int step = 0; step < 16; ++step, weights += 64) {
                    std::int8_t* to = room + (half * 2 * tiles + tile) * 1024 + step * 64;
                    store32(to, widen(weights));
                    store32(to + 32, widen(weights + 16));
                    store32(to + tiles * 1024, widen(weights + 32));
                    store32(to + tiles * 1024 + 32, widen(weights + 48));
                }
            }
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* room, std::int32_t* sums, bool add, Ahead& ahead) {
        const std::int16_t* x = call.x_wide + row * call.stride + tile * TILE_INPUTS;
        const auto* weights = reinterpret_cast<const std::int16_t*>(room);
        for (int column = 0; column < COLUMNS; ++column, weights += tiles * 512, sums += 16) {
            switch (count) {
                case 1: columns<1>(x, call.stride, weights, tiles, sums, add, ahead); break;
                case 2: columns<2>(x, call.stride, weights, tiles, sums, add, ahead); break;
                case 3: columns<3>(x, call.stride, weights, tiles, sums, add, ahead); break;
                case 4: columns<4>(x, call.stride, weights, tiles, sums, add, ahead); break;
                case 5: columns<5>(x, call.stride, weights, tiles, sums, add, ahead); break;
                default: columns<6>(x, call.stride, weights, tiles, sums, add, ahead); break;
            }
        }
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        for (int i = 0; i < 4; ++i) finish_eight(call, row, output + 8 * i, join(load32(sums + 16 * i), load32(sums + 16 * i + 8)));
    }
};

// One row needs its weights once: widened in passing.
void single_row(const Linear8& call, std::int64_t pair) {
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES;
    const std::int16_t* x = call.x_wide;
    __m256i part[SUM_PARTS];
#pragma GCC unroll 8
    for (auto& each : part) each = _mm256_setzero_si256();
    for (std::int64_t tile = 0; tile < tiles; ++tile, weights += TILE_BYTES) {
#pragma GCC unroll 4
        for (int step = 0; step < 16; ++step, x += 4, weights += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(weights + 4096), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(weights + TILE_BYTES + 4096), _MM_HINT_T0);
            const __m256i four = repeat_inputs(x);
#pragma GCC unroll 8
            for (int i = 0; i < SUM_PARTS; ++i) {
                part[i] = _mm256_add_epi32(part[i], _mm256_madd_epi16(four, widen(weights + i / 4 * TILE_BYTES + i % 4 * 16)));
                keep(part[i]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) finish_eight(call, 0, pair * PAIR_OUTPUTS + 8 * i, join(part[2 * i], part[2 * i + 1]));
}

}  // namespace

void widen_row(const std::int8_t* from, std::int64_t count, std::int64_t stride, std::int16_t* to) {
    std::int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_cvtepi8_epi16(some));
    }
    for (; i < count; ++i) to[i] = from[i];
    for (; i < stride; ++i) to[i] = 0;
}

bool linear8_avx2(const Linear8& call, std::int64_t first, std::int64_t last) {
    if (call.four_bits) return linear4_avx2(call, first, last);
    if (call.rows != 1) return run_kernel<Wide>(call, first, last);
    for (std::int64_t pair = first; pair < last; ++pair) single_row(call, pair);
    return true;
}

}  // namespace hasten
#endif
