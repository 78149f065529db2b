// AVX2, int8 weights: bytes widened to 16 bits, multiplied and added in pairs; nothing can saturate. Rows come widened already.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_avx2.h"

namespace hasten {
namespace {

const int MOST_ROWS = 6;   // of one block: 6 x 2 sums, two weights, a row's value and a product fill the registers
const int COLUMNS = 4;     // a pair's outputs, eight at a time
const int SUM_PARTS = 8;   // vectors of a row's sums of one pair; each lane is half the sum of one output
const std::int64_t ROW_SUMS = SUM_PARTS * 8;

INLINE __m256i widen(const std::int8_t* from) { return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from))); }

// Four inputs of a row, repeated.
INLINE __m256i repeat_inputs(const std::int16_t* from) {
    long long four;
    __builtin_memcpy(&four, from, 8);
    return _mm256_set1_epi64x(four);
}

// Two vectors of halves of sums to eight sums.
INLINE __m256i join(__m256i low, __m256i high) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8); }

// Where a product's weights come from: `room`, widened before; the packed tiles; or the tiles, and to `room` for the rows that follow.
enum Source { ROOM, TILES, TILES_TO_ROOM };

// COUNT rows times eight outputs, the 16 steps of one tile: `lines` is the place of the outputs in the packed tile.
template <int COUNT, Source SOURCE>
INLINE void tile_products(const std::int16_t* x, std::int64_t stride, const std::int8_t* lines, std::int8_t* room, __m256i (&part)[COUNT][2]) {
#pragma GCC unroll 4
    for (int step = 0; step < 16; ++step, x += 4, lines += 64, room += 64) {
        const __m256i low = SOURCE == ROOM ? load32(room) : widen(lines), high = SOURCE == ROOM ? load32(room + 32) : widen(lines + 16);
        if (SOURCE == TILES_TO_ROOM) store32(room, low), store32(room + 32, high);
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

template <int COUNT>
INLINE void load_parts(const std::int32_t* sums, bool add, __m256i (&part)[COUNT][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
        part[r][0] = add ? load32(sums + r * ROW_SUMS) : _mm256_setzero_si256();
        part[r][1] = add ? load32(sums + r * ROW_SUMS + 8) : _mm256_setzero_si256();
    }
}

template <int COUNT>
INLINE void store_parts(std::int32_t* sums, const __m256i (&part)[COUNT][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
        store32(sums + r * ROW_SUMS, part[r][0]);
        store32(sums + r * ROW_SUMS + 8, part[r][1]);
    }
}

// COUNT rows times a chunk of a pair's tiles.
template <int COUNT, Source SOURCE>
void chunk_products(const std::int16_t* x, std::int64_t stride, const std::int8_t* weights, std::int64_t tiles, std::int8_t* room,
                    std::int32_t* sums, bool add, Ahead& ahead) {
    for (int column = 0; column < COLUMNS; ++column, sums += 16) {
        const std::int8_t* lines = weights + column / 2 * TILE_BYTES + column % 2 * 32;
        __m256i part[COUNT][2];
        load_parts<COUNT>(sums, add, part);
        for (std::int64_t tile = 0; tile < tiles; ++tile, room += 1024) {
            ahead.fetch();
            tile_products<COUNT, SOURCE>(x + tile * TILE_INPUTS, stride, lines + tile * PAIR_BYTES, room, part);
        }
        store_parts<COUNT>(sums, part);
    }
}

struct Wide {
    static const std::int64_t CHUNK_TILES = 4, TILE_SIZE = PAIR_BYTES, ROOM_BYTES = 2 * PAIR_BYTES, COLUMNS = hasten::COLUMNS, ROW_SUMS = hasten::ROW_SUMS, MOST_ROWS = hasten::MOST_ROWS;

    template <Source SOURCE>
    static void multiply_from(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                              const std::int8_t* weights, std::int8_t* room, std::int32_t* sums, Ahead& ahead) {
        const std::int16_t* x = call.x_wide + row * call.stride + tile * TILE_INPUTS;
        const bool add = tile != 0;
        switch (count) {
            case 4: return chunk_products<4, SOURCE>(x, call.stride, weights, tiles, room, sums, add, ahead);
            case 5: return chunk_products<5, SOURCE>(x, call.stride, weights, tiles, room, sums, add, ahead);
            case 6: return chunk_products<6, SOURCE>(x, call.stride, weights, tiles, room, sums, add, ahead);
            default: return chunk_products<3, SOURCE>(x, call.stride, weights, tiles, room, sums, add, ahead);
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* weights, std::int8_t* room, bool first, std::int32_t* sums, Ahead& ahead) {
        if (first) return multiply_from<TILES_TO_ROOM>(call, row, count, tile, tiles, weights, room, sums, ahead);
        return multiply_from<ROOM>(call, row, count, tile, tiles, weights, room, sums, ahead);
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        for (int i = 0; i < 4; ++i) finish_eight(call, row, output + 8 * i, join(load32(sums + 16 * i), load32(sums + 16 * i + 8)));
    }
};

// Up to six rows: weights are widened in passing and read in the order in which they lie; sums wait in the cache between tiles.
template <int COUNT>
void few_rows(const Linear8& call, std::int64_t pair) {
    alignas(32) std::int32_t sums[COUNT * ROW_SUMS];
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        for (int column = 0; column < COLUMNS; ++column) {
            if (column % 2 == 0) fetch_ahead<16>(weights);
            __m256i part[COUNT][2];
            load_parts<COUNT>(sums + column * 16, tile != 0, part);
            tile_products<COUNT, TILES>(call.x_wide + tile * TILE_INPUTS, call.stride, weights + column % 2 * 32, nullptr, part);
            store_parts<COUNT>(sums + column * 16, part);
            if (column % 2 == 1) weights += TILE_BYTES;
        }
    }
    for (int r = 0; r < COUNT; ++r) Wide::finish(call, r, pair * PAIR_OUTPUTS, sums + r * ROW_SUMS);
}

// One row needs its weights once: widened in passing, read in the order in which they lie.
void single_row(const Linear8& call, std::int64_t pair) {
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES;
    const std::int16_t* x = call.x_wide;
    __m256i part[SUM_PARTS];
#pragma GCC unroll 8
    for (auto& each : part) each = _mm256_setzero_si256();
    for (std::int64_t tile = 0; tile < tiles; ++tile, x += TILE_INPUTS) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
            for (int step = 0; step < 16; ++step, weights += 64) {
                fetch_line(weights + AHEAD_BYTES);
                const __m256i four = repeat_inputs(x + step * 4);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    __m256i& sums = part[half * 4 + i];
                    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(four, widen(weights + i * 16)));
                    keep(sums);
                }
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
    if (call.bits < 8) return progressive_avx2(call, first, last);
    if (call.rows > MOST_ROWS) return run_kernel<Wide>(call, first, last);
    using Few = void (*)(const Linear8&, std::int64_t);
    const Few few[MOST_ROWS + 1] = {nullptr, single_row, few_rows<2>, few_rows<3>, few_rows<4>, few_rows<5>, few_rows<6>};
    for (std::int64_t pair = first; call.rows > 0 && pair < last; ++pair) few[call.rows](call, pair);
    return true;
}

}  // namespace hasten
#endif
