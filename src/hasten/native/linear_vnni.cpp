// AVX-512 VNNI: unsigned rows (moved by 128) times signed weights, four bytes at a time; the weights' sums take the move back out. Weights
// of fewer bits become eight-bit ones on their way into the first-level cache; for few rows progressive_vnni takes them as they are.
#include "linear.h"

#if defined(__x86_64__)
#include "codes_avx512.h"
#include "finish_avx512.h"
#include "linear_panel.h"
#include "repeat_avx512.h"

namespace hasten {
namespace {

template <int BITS>
struct Moved {
    static const std::int64_t CHUNK_TILES = 4, TILE_SIZE = pair_bytes(BITS), ROOM_BYTES = BITS < 8 ? PAIR_BYTES : 64;
    static const std::int64_t COLUMNS = 16, ROW_SUMS = PAIR_OUTPUTS, MOST_ROWS = 8;

    // ROWS rows times a chunk's tiles; `packed` are its weights, `room` is where those of few bits are or, at first, come to be unpacked.
    template <int ROWS, bool FIRST>
    static void products(const std::uint8_t* x, std::int64_t rows, const std::int8_t* packed, std::int64_t tiles, std::int8_t* room,
                         bool add, std::int32_t* out, Ahead& ahead) {
        if constexpr (BITS < 8 && FIRST) {
            for (std::int64_t tile = 0; tile < tiles; ++tile) unpack_pair<BITS>(packed + tile * TILE_SIZE, room + tile * PAIR_BYTES);
        }
        __m512i sums[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            sums[r][0] = add ? _mm512_load_si512(out + r * PAIR_OUTPUTS) : _mm512_setzero_si512();
            sums[r][1] = add ? _mm512_load_si512(out + r * PAIR_OUTPUTS + TILE_OUTPUTS) : _mm512_setzero_si512();
        }
        for (std::int64_t tile = 0; tile < tiles; ++tile, x += rows * TILE_INPUTS) {
            const std::int8_t* weights = (BITS < 8 ? room : packed) + tile * PAIR_BYTES;
#pragma GCC unroll 16
            for (int group = 0; group < 16; ++group) {
                ahead.fetch();
                const __m512i low = _mm512_load_si512(weights + group * 64), high = _mm512_load_si512(weights + TILE_BYTES + group * 64);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i four = repeat_four(x + r * TILE_INPUTS + group * 4);
                    sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], four, low);
                    sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], four, high);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            _mm512_store_si512(out + r * PAIR_OUTPUTS, sums[r][0]);
            _mm512_store_si512(out + r * PAIR_OUTPUTS + TILE_OUTPUTS, sums[r][1]);
        }
    }

    template <bool FIRST>
    static void some_rows(std::int64_t count, const std::uint8_t* x, std::int64_t rows, const std::int8_t* packed, std::int64_t tiles,
                          std::int8_t* room, bool add, std::int32_t* out, Ahead& ahead) {
        switch (count) {
            case 1: return products<1, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 2: return products<2, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 3: return products<3, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 4: return products<4, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 5: return products<5, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 6: return products<6, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            case 7: return products<7, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
            default: return products<8, FIRST>(x, rows, packed, tiles, room, add, out, ahead);
        }
    }

    static void multiply(const Linear8& call, std::int64_t row, std::int64_t count, std::int64_t tile, std::int64_t tiles,
                         const std::int8_t* packed, std::int8_t* room, bool first, std::int32_t* sums, Ahead& ahead) {
        const std::uint8_t* x = call.x_by_tile + (tile * call.rows + row) * TILE_INPUTS;
        if (BITS < 8 && first) return some_rows<true>(count, x, call.rows, packed, tiles, room, tile != 0, sums, ahead);
        return some_rows<false>(count, x, call.rows, packed, tiles, room, tile != 0, sums, ahead);
    }

    static void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
        const __m512i low = _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_loadu_si512(call.sums + output));
        const __m512i high = _mm512_sub_epi32(_mm512_load_si512(sums + TILE_OUTPUTS), _mm512_loadu_si512(call.sums + output + TILE_OUTPUTS));
        finish_pair(call, row, output, low, high);
    }
};

}  // namespace

bool linear8_vnni(const Linear8& call, std::int64_t first, std::int64_t last) {
    if (call.bits < 8 && call.rows <= FEW_ROWS) return progressive_vnni(call, first, last);
    if (call.bits == 4) return run_kernel<Moved<4>>(call, first, last);
    return call.bits == 3 ? run_kernel<Moved<3>>(call, first, last) : run_kernel<Moved<8>>(call, first, last);
}

}  // namespace hasten
#endif
