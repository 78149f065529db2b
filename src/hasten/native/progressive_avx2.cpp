// AVX2, weights of few bits: codes (unsigned) times rows (signed), eight products of a lane in 16 bits (8 * 2 * 15 * 128 = 30720: nothing
// can saturate), then times the group's scale into 32 bits; the group's offset times the sum of the row's inputs comes on top. All of it
// is exact, so the sums are those of the unpacked int8 weights.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_avx2.h"

namespace hasten {
namespace {

const int MOST_ROWS = 4;             // of one block, where codes are unpacked in passing
const int GROUP_STEPS = 8;           // steps of four inputs of a group, whose products fit 16 bits
const std::int64_t HALF_ROOM = TILE_BYTES + 128 * TILE_GROUPS;  // a tile's sixteen outputs unpacked: codes as bytes, then Scales

// Eight scales, each in both halves of its 32 bits; eight offsets in the low halves.
INLINE __m256i twice(const void* from) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
    return _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16));
}
INLINE __m256i low_halves(const void* from) {
    return _mm256_and_si256(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))), _mm256_set1_epi32(0xffff));
}

// Where the codes come from: `room`, unpacked before; the packed tiles; or the tiles, and to `room` for the rows that follow.
enum Source { ROOM, TILES, TILES_TO_ROOM };

// Half of one of eight lines of codes (linear.h) as bytes.
template <int BITS>
INLINE __m256i codes_of(const std::int8_t* eight, int line, int v) {
    eight += v * 32;
    if (BITS == 4 || line < 6) {
        const __m256i both = load32(eight + line / 2 * 64), mask = _mm256_set1_epi8(BITS == 4 ? 15 : 7);
        return _mm256_and_si256(line % 2 == 0 ? both : _mm256_srli_epi16(both, BITS), mask);
    }
    const __m256i last = load32(eight + 128), high = line == 6 ? _mm256_srli_epi16(last, 4) : _mm256_srli_epi16(last, 5);
    const __m256i low = _mm256_srli_epi16(load32(eight + line % 2 * 64), 6);
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(3)), _mm256_and_si256(high, _mm256_set1_epi8(4)));
}

template <int BITS, Source SOURCE>
INLINE __m256i codes_from(const std::int8_t* eight, std::int8_t* room, int step, int v) {
    if (SOURCE == ROOM) return load32(room + step * 64 + v * 32);
    const __m256i some = codes_of<BITS>(eight, step, v);
    if (SOURCE == TILES_TO_ROOM) store32(room + step * 64 + v * 32, some);
    return some;
}

// What a tile's sixteen outputs are multiplied by, group by group, and what is added for each unit of a row's sum.
struct Scales {
    __m256i scale[TILE_GROUPS][2], offset[TILE_GROUPS][2];
};

INLINE Scales scales_of(const std::int8_t* scales) {
    const std::int8_t *next = scales + PAIR_OUTPUTS, *offsets = scales + TILE_GROUPS * PAIR_OUTPUTS, *others = offsets + PAIR_OUTPUTS;
    return {{{twice(scales), twice(scales + 8)}, {twice(next), twice(next + 8)}},
            {{low_halves(offsets), low_halves(offsets + 8)}, {low_halves(others), low_halves(others + 8)}}};
}

// COUNT rows times the sixteen outputs of one tile, added to their sums.
template <int BITS, int COUNT, Source SOURCE>
INLINE void tile_products(const std::int8_t* x, std::int64_t stride, const std::int32_t* x_sums, std::int64_t sums_stride,
                          const std::int8_t* packed, const Scales& scales, std::int8_t* room, std::int32_t* sums) {
#pragma GCC unroll 1
    for (int group = 0; group < TILE_GROUPS; ++group, x += CODE_GROUP, packed += tile_bytes(BITS) / 2, room += TILE_BYTES / 2) {
        __m256i part[COUNT][2];
#pragma GCC unroll 8
        for (int step = 0; step < GROUP_STEPS; ++step) {
            const __m256i low = codes_from<BITS, SOURCE>(packed, room, step, 0), high = codes_from<BITS, SOURCE>(packed, room, step, 1);
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
                const __m256i sum = _mm256_add_epi32(load32(to), _mm256_madd_epi16(part[r][v], scales.scale[group][v]));
                store32(to, _mm256_add_epi32(sum, _mm256_madd_epi16(scales.offset[group][v], repeat_int(x_sums + r * sums_stride + group))));
            }
        }
    }
}

template <int COUNT>
INLINE void clear(std::int32_t* sums) {
    for (int i = 0; i < COUNT * 4; ++i) store32(sums + i * 8, _mm256_setzero_si256());
}

// COUNT rows times a chunk of a pair's tiles.
template <int BITS, int COUNT, Source SOURCE>
void chunk_products(const Linear8& call, std::int64_t row, std::int64_t tile, std::int64_t tiles, const std::int8_t* weights,
                    std::int8_t* room, std::int32_t* sums, Ahead& ahead) {
    const std::int64_t every = call.stride / CODE_GROUP;
    const std::int8_t* x = call.x + row * call.stride;
    const std::int32_t* totals = call.x_sums + row * every;
    if (tile == 0) clear<COUNT>(sums);
    for (int half = 0; half < 2; ++half, sums += TILE_OUTPUTS) {
        for (std::int64_t at = tile; at < tile + tiles; ++at, room += HALF_ROOM) {
            const std::int8_t* packed = weights + (at - tile) * pair_bytes(BITS);
            auto* scales = reinterpret_cast<Scales*>(room + TILE_BYTES);
            if (SOURCE == TILES_TO_ROOM) *scales = scales_of(packed + scales_at(BITS) + half * 16);
            ahead.fetch();
            tile_products<BITS, COUNT, SOURCE>(x + at * TILE_INPUTS, call.stride, totals + at * TILE_GROUPS, every, packed + half * tile_bytes(BITS), *scales,
                                               room, sums);
        }
    }
}

template <int BITS>
struct ByRoom {
    static const std::int64_t CHUNK_TILES = 6, TILE_SIZE = pair_bytes(BITS), ROOM_BYTES = 2 * HALF_ROOM, COLUMNS = 2, ROW_SUMS = PAIR_OUTPUTS;
    static const std::int64_t MOST_ROWS = hasten::MOST_ROWS;

    template <Source SOURCE>
    static void multiply_from(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                              const std::int8_t* weights, std::int8_t* room, std::int32_t* sums, Ahead& ahead) {
        switch (count) {
            case 4: return chunk_products<BITS, 4, SOURCE>(call, row, tile, tiles, weights, room, sums, ahead);
            case 2: return chunk_products<BITS, 2, SOURCE>(call, row, tile, tiles, weights, room, sums, ahead);
            default: return chunk_products<BITS, 3, SOURCE>(call, row, tile, tiles, weights, room, sums, ahead);
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* weights, std::int8_t* room, bool first, std::int32_t* sums, Ahead& ahead) {
        if (first) return multiply_from<TILES_TO_ROOM>(call, row, count, tile, tiles, weights, room, sums, ahead);
        return multiply_from<ROOM>(call, row, count, tile, tiles, weights, room, sums, ahead);
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        for (int i = 0; i < 4; ++i) finish_eight(call, row, output + 8 * i, load32(sums + 8 * i));
    }
};

// Up to four rows: codes are unpacked in passing and read in the order in which they lie; sums wait in the cache between tiles.
template <int BITS, int COUNT>
void few_rows(const Linear8& call, std::int64_t pair) {
    alignas(32) std::int32_t sums[COUNT * PAIR_OUTPUTS];
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * pair_bytes(BITS);
    clear<COUNT>(sums);
    for (std::int64_t tile = 0; tile < tiles; ++tile, weights += pair_bytes(BITS)) {
        fetch_ahead<pair_bytes(BITS) / 64>(weights);
        for (int half = 0; half < 2; ++half) {
            tile_products<BITS, COUNT, TILES>(call.x + tile * TILE_INPUTS, call.stride, call.x_sums + tile * TILE_GROUPS, tiles * TILE_GROUPS, weights + half * tile_bytes(BITS),
                                              scales_of(weights + scales_at(BITS) + half * 16), nullptr, sums + half * TILE_OUTPUTS);
        }
    }
    for (int r = 0; r < COUNT; ++r) ByRoom<BITS>::finish(call, r, pair * PAIR_OUTPUTS, sums + r * PAIR_OUTPUTS);
}

// One row needs its weights once: unpacked in passing.
template <int BITS>
void single_row(const Linear8& call, std::int64_t pair) {
    const std::int64_t tiles = tiles_of(call.inputs);
    const std::int8_t* weights = call.tiles + pair * tiles * pair_bytes(BITS);
    const std::int8_t* x = call.x;
    __m256i sums[4];
#pragma GCC unroll 4
    for (auto& each : sums) each = _mm256_setzero_si256();
    for (std::int64_t tile = 0; tile < tiles; ++tile, weights += pair_bytes(BITS), x += TILE_INPUTS) {
#pragma GCC unroll 4
        for (int part = 0; part < 2 * TILE_GROUPS; ++part) {
            const int half = part / TILE_GROUPS, group = part % TILE_GROUPS;
            const std::int8_t* eight = weights + half * tile_bytes(BITS) + group * 64 * BITS;
            __m256i even[2], odd[2];
#pragma GCC unroll 4
            for (int line = 0; line < 4; ++line) {
                if (line < BITS) fetch_ahead<1>(eight + line * 64);
                const __m256i first = repeat_int(x + group * CODE_GROUP + line * 8), second = repeat_int(x + group * CODE_GROUP + line * 8 + 4);
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v) {
                    const __m256i low = _mm256_maddubs_epi16(codes_of<BITS>(eight, line * 2, v), first);
                    const __m256i high = _mm256_maddubs_epi16(codes_of<BITS>(eight, line * 2 + 1, v), second);
                    even[v] = line == 0 ? low : _mm256_add_epi16(even[v], low);
                    odd[v] = line == 0 ? high : _mm256_add_epi16(odd[v], high);
                    keep(even[v]);
                    keep(odd[v]);
                }
            }
            const __m256i total = repeat_int(call.x_sums + tile * TILE_GROUPS + group);
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                const std::int64_t place = half * TILE_OUTPUTS + v * 8;
                const __m256i scale = twice(weights + scales_at(BITS, group) + place), offset = low_halves(weights + offsets_at(BITS, group) + place);
                const __m256i scaled = _mm256_madd_epi16(_mm256_add_epi16(even[v], odd[v]), scale);
                sums[2 * half + v] = _mm256_add_epi32(sums[2 * half + v], _mm256_add_epi32(scaled, _mm256_madd_epi16(offset, total)));
            }
        }
        fetch_ahead<2>(weights + scales_at(BITS));
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) finish_eight(call, 0, pair * PAIR_OUTPUTS + 8 * v, sums[v]);
}

template <int BITS>
bool run(const Linear8& call, std::int64_t first, std::int64_t last) {
    if (call.rows > MOST_ROWS) return run_kernel<ByRoom<BITS>>(call, first, last);
    using Few = void (*)(const Linear8&, std::int64_t);
    const Few few[MOST_ROWS + 1] = {nullptr, single_row<BITS>, few_rows<BITS, 2>, few_rows<BITS, 3>, few_rows<BITS, 4>};
    for (std::int64_t pair = first; call.rows > 0 && pair < last; ++pair) few[call.rows](call, pair);
    return true;
}

}  // namespace

void sum_groups(const std::int8_t* x, std::int64_t tiles, std::int64_t step, std::int32_t* sums) {
    const __m256i ones = _mm256_set1_epi8(1), wide_ones = _mm256_set1_epi16(1);
    for (std::int64_t tile = 0; tile < tiles; ++tile, x += step) {
        for (std::int64_t group = 0; group < TILE_GROUPS; ++group) {
            const __m256i pairs = _mm256_maddubs_epi16(ones, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + group * CODE_GROUP)));
            const __m256i eight = _mm256_madd_epi16(pairs, wide_ones);
            __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
            sums[tile * TILE_GROUPS + group] = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
        }
    }
}

bool progressive_avx2(const Linear8& call, std::int64_t first, std::int64_t last) {
    return call.bits == 4 ? run<4>(call, first, last) : run<3>(call, first, last);
}

}  // namespace hasten
#endif
