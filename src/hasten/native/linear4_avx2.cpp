// AVX2, four-bit weights: nibbles (unsigned) times rows (signed), eight products of a lane in 16 bits (8 * 2 * 15 * 128 = 30720: nothing
// can saturate), then times the group's scale into 32 bits; the group's offset times the sum of the row's inputs comes on top. All of it
// is exact, so the sums are those of the unpacked int8 weights.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_avx2.h"

namespace hasten {
namespace {

const int HALF_STEPS = 8;            // steps of four inputs whose products fit 16 bits
const std::int64_t NIBBLE_ROOM = 2048, GROUP_ROOM = 256;

// Eight scales, each in both halves of its 32 bits; eight offsets in the low halves.
INLINE __m256i twice(const void* from) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
    return _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16));
}
INLINE __m256i low_halves(const void* from) {
    return _mm256_and_si256(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))), _mm256_set1_epi32(0xffff));
}

// COUNT rows times sixteen outputs of a chunk.
template <int COUNT>
void columns(const std::int8_t* x, std::int64_t stride, const std::int32_t* x_sums, std::int64_t sums_stride, const std::int8_t* room,
             std::int64_t tiles, std::int32_t* sums, bool add, Ahead& ahead) {
    for (std::int64_t tile = 0; tile < tiles; ++tile, room += (NIBBLE_ROOM + GROUP_ROOM) / 2) {
        ahead.fetch();
        const std::int8_t* group = room + NIBBLE_ROOM / 2;
        const __m256i offset[2] = {load32(group + 64), load32(group + 96)};
#pragma GCC unroll 6
        for (int r = 0; r < COUNT; ++r) {
            const __m256i total = repeat_int(x_sums + r * sums_stride + tile);
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                std::int32_t* to = sums + r * PAIR_OUTPUTS + v * 8;
                const __m256i more = _mm256_madd_epi16(offset[v], total);
                store32(to, add || tile != 0 ? _mm256_add_epi32(load32(to), more) : more);
            }
        }
#pragma GCC unroll 1
        for (int half = 0; half < 2; ++half, x += 4 * HALF_STEPS) {
            const std::int8_t* nibbles = room + half * HALF_STEPS * 64;
            __m256i part[COUNT][2];
#pragma GCC unroll 8
            for (int step = 0; step < HALF_STEPS; ++step) {
                const __m256i low = load32(nibbles + step * 64), high = load32(nibbles + step * 64 + 32);
#pragma GCC unroll 6
                for (int r = 0; r < COUNT; ++r) {
                    const __m256i four = repeat_int(x + r * stride + step * 4);
                    const __m256i first = _mm256_maddubs_epi16(low, four), second = _mm256_maddubs_epi16(high, four);
                    part[r][0] = step == 0 ? first : _mm256_add_epi16(part[r][0], first);
                    part[r][1] = step == 0 ? second : _mm256_add_epi16(part[r][1], second);
                    keep(part[r][0]);
                    keep(part[r][1]);
                }
            }
#pragma GCC unroll 6
            for (int r = 0; r < COUNT; ++r) {
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v) {
                    std::int32_t* to = sums + r * PAIR_OUTPUTS + v * 8;
                    store32(to, _mm256_add_epi32(load32(to), _mm256_madd_epi16(part[r][v], load32(group + v * 32))));
                }
            }
        }
    }
}

struct Nibbles {
    static const std::int64_t CHUNK_TILES = 6, TILE_SIZE = PAIR_BYTES_4, ROOM_BYTES = NIBBLE_ROOM + GROUP_ROOM, COLUMNS = 2, ROW_SUMS = PAIR_OUTPUTS;

    // [2 output tiles][tiles] of [16 steps][2 vectors of 8 outputs x 4 inputs], 2 vectors of scales, 2 of offsets.
    static void prepare(const std::int8_t* weights, std::int64_t tiles, std::int8_t* room) {
        const __m256i mask = _mm256_set1_epi8(15);
        for (std::int64_t tile = 0; tile < tiles; ++tile, weights += PAIR_BYTES_4) {
            for (int half = 0; half < 2; ++half) {
                std::int8_t* to = room + (half * tiles + tile) * (ROOM_BYTES / 2);
                const std::int8_t* nibbles = weights + half * NIBBLES_BYTES;
                for (int line = 0; line < 8; ++line) {
                    for (int v = 0; v < 2; ++v) {
                        const __m256i both = load32(nibbles + line * 64 + v * 32);
                        store32(to + line * 128 + v * 32, _mm256_and_si256(both, mask));
                        store32(to + line * 128 + 64 + v * 32, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
                    }
                }
                for (int v = 0; v < 2; ++v) {
                    store32(to + NIBBLE_ROOM / 2 + v * 32, twice(weights + SCALES_AT + half * 16 + v * 8));
                    store32(to + NIBBLE_ROOM / 2 + 64 + v * 32, low_halves(weights + OFFSETS_AT + half * 16 + v * 8));
                }
            }
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* room, std::int32_t* sums, bool add, Ahead& ahead) {
        const std::int8_t* x = call.x + row * call.stride + tile * TILE_INPUTS;
        const std::int64_t every = call.stride / TILE_INPUTS;
        const std::int32_t* totals = call.x_sums + row * every + tile;
        for (int column = 0; column < COLUMNS; ++column, room += tiles * (ROOM_BYTES / 2), sums += TILE_OUTPUTS) {
            switch (count) {
                case 1: columns<1>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
                case 2: columns<2>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
                case 3: columns<3>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
                case 4: columns<4>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
                case 5: columns<5>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
                default: columns<6>(x, call.stride, totals, every, room, tiles, sums, add, ahead); break;
            }
        }
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        for (int i = 0; i < 4; ++i) finish_eight(call, row, output + 8 * i, load32(sums + 8 * i));
    }
};

// One row needs its weights once: unpacked in passing.
void single_row(const Linear8& call, std::int64_t pair) {
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES_4;
    const std::int8_t* x = call.x;
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i sums[4];
#pragma GCC unroll 4
    for (auto& each : sums) each = _mm256_setzero_si256();
    for (std::int64_t tile = 0; tile < tiles; ++tile, weights += PAIR_BYTES_4, x += TILE_INPUTS) {
        const __m256i total = repeat_int(call.x_sums + tile);
        __m256i even[4], odd[4];
#pragma GCC unroll 8
        for (int line = 0; line < 8; ++line) {
            _mm_prefetch(reinterpret_cast<const char*>(weights + 4352 + line * 64), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(weights + 4352 + NIBBLES_BYTES + line * 64), _MM_HINT_T0);
            const __m256i first = repeat_int(x + line * 8), second = repeat_int(x + line * 8 + 4);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const __m256i both = load32(weights + v / 2 * NIBBLES_BYTES + line * 64 + v % 2 * 32);
                const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(both, mask), first);
                const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), second);
                even[v] = line == 0 ? low : _mm256_add_epi16(even[v], low);
                odd[v] = line == 0 ? high : _mm256_add_epi16(odd[v], high);
                keep(even[v]);
                keep(odd[v]);
            }
        }
        _mm_prefetch(reinterpret_cast<const char*>(weights + 4352 + SCALES_AT), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            const __m256i scale = twice(weights + SCALES_AT + v * 8), offset = low_halves(weights + OFFSETS_AT + v * 8);
            const __m256i scaled = _mm256_add_epi32(_mm256_madd_epi16(even[v], scale), _mm256_madd_epi16(odd[v], scale));
            sums[v] = _mm256_add_epi32(sums[v], _mm256_add_epi32(scaled, _mm256_madd_epi16(offset, total)));
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) finish_eight(call, 0, pair * PAIR_OUTPUTS + 8 * v, sums[v]);
}

}  // namespace

void sum_tiles(const std::int8_t* x, std::int64_t tiles, std::int32_t* sums) {
    const __m256i ones = _mm256_set1_epi8(1), wide_ones = _mm256_set1_epi16(1);
    for (std::int64_t tile = 0; tile < tiles; ++tile, x += TILE_INPUTS) {
        const __m256i low = _mm256_maddubs_epi16(ones, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
        const __m256i high = _mm256_maddubs_epi16(ones, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32)));
        const __m256i eight = _mm256_madd_epi16(_mm256_add_epi16(low, high), wide_ones);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        sums[tile] = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
}

bool linear4_avx2(const Linear8& call, std::int64_t first, std::int64_t last) {
    if (call.rows != 1) return run_kernel<Nibbles>(call, first, last);
    for (std::int64_t pair = first; pair < last; ++pair) single_row(call, pair);
    return true;
}

}  // namespace hasten
#endif
