// AVX-512 VNNI, weights of few bits and few rows: codes are multiplied as they are, and a group's scale and offset come in behind its sums.
// To bring every weight into eight bits first only pays where more rows than FEW_ROWS share it.
#include "linear.h"

#if defined(__x86_64__)
#include "codes_avx512.h"
#include "finish_avx512.h"
#include "linear_panel.h"
#include "repeat_avx512.h"

namespace hasten {
namespace {

INLINE __m128i bytes_at(const std::int8_t* from) { return _mm_load_si128(reinterpret_cast<const __m128i*>(from)); }

template <int BITS>
struct AsTheyAre {
    static const std::int64_t CHUNK_TILES = 4, TILE_SIZE = pair_bytes(BITS), ROOM_BYTES = 64;
    static const std::int64_t COLUMNS = 8, ROW_SUMS = PAIR_OUTPUTS, MOST_ROWS = 8;

    // Adds a tile's products: each group's sum, times its scale, and its offset times the sum of the row's inputs.
    template <int ROWS>
    static INLINE void add_tile(const std::int8_t* x, const std::int32_t* totals, std::int64_t stride, const std::int8_t* packed,
                                __m512i (*sums)[2], Ahead& ahead) {
#pragma GCC unroll 2
        for (int group = 0; group < TILE_GROUPS; ++group) add_group<ROWS>(group, x, totals + group, stride, packed, sums, ahead);
    }

    template <int ROWS>
    static INLINE void add_group(int group, const std::int8_t* x, const std::int32_t* totals, std::int64_t stride, const std::int8_t* packed,
                                 __m512i (*sums)[2], Ahead& ahead) {
        const bool spread = ROWS == 1;  // over more sums, which else wait for each other
        __m512i dots[ROWS][2], others[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) dots[r][0] = dots[r][1] = others[r][0] = others[r][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int line = group * 4; line < group * 4 + 4; ++line) {
            ahead.fetch();
            const std::int8_t* second = packed + tile_bytes(BITS);
            const __m512i first_even = codes_of<BITS>(packed, 2 * line), first_odd = codes_of<BITS>(packed, 2 * line + 1);
            const __m512i second_even = codes_of<BITS>(second, 2 * line), second_odd = codes_of<BITS>(second, 2 * line + 1);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const __m512i even = repeat_four(x + r * TILE_INPUTS + line * 8), odd = repeat_four(x + r * TILE_INPUTS + line * 8 + 4);
                dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], first_even, even);
                dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], second_even, even);
                __m512i* next = spread ? others[r] : dots[r];
                next[0] = _mm512_dpbusd_epi32(next[0], first_odd, odd);
                next[1] = _mm512_dpbusd_epi32(next[1], second_odd, odd);
            }
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m512i scale = _mm512_cvtepu8_epi32(bytes_at(packed + scales_at(BITS, group) + half * 16));
            const __m512i offset = _mm512_and_si512(_mm512_cvtepi8_epi32(bytes_at(packed + offsets_at(BITS, group) + half * 16)), _mm512_set1_epi32(0xffff));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const __m512i dot = spread ? _mm512_add_epi32(dots[r][half], others[r][half]) : dots[r][half];
                const __m512i moved = _mm512_dpwssd_epi32(sums[r][half], offset, _mm512_set1_epi32(totals[r * stride]));
                sums[r][half] = _mm512_add_epi32(moved, _mm512_mullo_epi32(dot, scale));
            }
        }
    }

    template <int ROWS>
    static void products(const std::int8_t* x, const std::int32_t* totals, std::int64_t stride, std::int64_t step, const std::int8_t* packed,
                         std::int64_t tiles, bool add, std::int32_t* out, Ahead& ahead) {
        __m512i sums[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            sums[r][0] = add ? _mm512_load_si512(out + r * PAIR_OUTPUTS) : _mm512_setzero_si512();
            sums[r][1] = add ? _mm512_load_si512(out + r * PAIR_OUTPUTS + TILE_OUTPUTS) : _mm512_setzero_si512();
        }
        for (std::int64_t tile = 0; tile < tiles; ++tile, packed += TILE_SIZE, x += step, totals += TILE_GROUPS) {
            add_tile<ROWS>(x, totals, stride, packed, sums, ahead);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            _mm512_store_si512(out + r * PAIR_OUTPUTS, sums[r][0]);
            _mm512_store_si512(out + r * PAIR_OUTPUTS + TILE_OUTPUTS, sums[r][1]);
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* packed, std::int8_t*, bool, std::int32_t* sums, Ahead& ahead) {
        const auto* x = reinterpret_cast<const std::int8_t*>(call.x_by_tile) + (tile * call.rows + row) * TILE_INPUTS;
        const std::int64_t stride = tiles_of(call.inputs) * TILE_GROUPS, step = call.rows * TILE_INPUTS;
        const std::int32_t* totals = call.x_sums + row * stride + tile * TILE_GROUPS;
        switch (count) {
            case 1: return products<1>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 2: return products<2>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 3: return products<3>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 4: return products<4>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 5: return products<5>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 6: return products<6>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            case 7: return products<7>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
            default: return products<8>(x, totals, stride, step, packed, tiles, tile != 0, sums, ahead);
        }
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        finish_pair(call, row, output, _mm512_load_si512(sums), _mm512_load_si512(sums + TILE_OUTPUTS));
    }
};

}  // namespace

bool progressive_vnni(const Linear8& call, std::int64_t first, std::int64_t last) {
    return call.bits == 4 ? run_kernel<AsTheyAre<4>>(call, first, last) : run_kernel<AsTheyAre<3>>(call, first, last);
}

}  // namespace hasten
#endif
