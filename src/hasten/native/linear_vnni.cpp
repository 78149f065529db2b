// AVX-512 VNNI: unsigned rows (moved by 128) times signed weights, four bytes at a time; the weights' sums take the move back out.
#include "linear.h"

#if defined(__x86_64__)
#include "finish_avx512.h"
#include "unpack_avx512.h"

namespace hasten {
namespace {

inline __m512i repeat_four(const std::uint8_t* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

template <int ROWS, bool AHEAD>
void pair_rows(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t tiles) {
    const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES;
    const std::uint8_t* x = call.x_moved + row * call.stride;
    __m512i sums[ROWS][2];
    for (int half = 0; half < 2; ++half) {
        const __m512i moved = _mm512_loadu_si512(call.sums + pair * PAIR_OUTPUTS + half * TILE_OUTPUTS);
        for (int r = 0; r < ROWS; ++r) sums[r][half] = _mm512_sub_epi32(_mm512_setzero_si512(), moved);
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile, weights += PAIR_BYTES, x += TILE_INPUTS) {
#pragma GCC unroll 16
        for (int group = 0; group < 16; ++group) {
            if (AHEAD) {
                _mm_prefetch(reinterpret_cast<const char*>(weights + 4096 + group * 128), _MM_HINT_T0);
                _mm_prefetch(reinterpret_cast<const char*>(weights + 4096 + group * 128 + 64), _MM_HINT_T0);
            }
            const __m512i low = _mm512_load_si512(weights + group * 64);
            const __m512i high = _mm512_load_si512(weights + TILE_BYTES + group * 64);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const __m512i four = repeat_four(x + r * call.stride + group * 4);
                sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], four, low);
                sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], four, high);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) finish_pair(call, row + r, pair * PAIR_OUTPUTS, sums[r][0], sums[r][1]);
}

template <bool AHEAD>
void some_rows(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t tiles) {
    switch (call.rows - row) {
        case 1: return pair_rows<1, AHEAD>(call, pair, row, tiles);
        case 2: return pair_rows<2, AHEAD>(call, pair, row, tiles);
        case 3: return pair_rows<3, AHEAD>(call, pair, row, tiles);
        case 4: return pair_rows<4, AHEAD>(call, pair, row, tiles);
        case 5: return pair_rows<5, AHEAD>(call, pair, row, tiles);
        case 6: return pair_rows<6, AHEAD>(call, pair, row, tiles);
        case 7: return pair_rows<7, AHEAD>(call, pair, row, tiles);
        default: return pair_rows<8, AHEAD>(call, pair, row, tiles);
    }
}

}  // namespace

bool linear8_vnni(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs);
    for (std::int64_t pair = first; pair < last; ++pair) {
        some_rows<true>(call, pair, 0, tiles);
        for (std::int64_t row = 8; row < call.rows; row += 8) some_rows<false>(call, pair, row, tiles);
    }
    return true;
}

void unpack4_avx512(const std::int8_t* packed, std::int64_t tiles, std::int8_t* out) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        prefetch_nibbles<4352>(packed + tile * PAIR_BYTES_4);
        unpack_pair(packed + tile * PAIR_BYTES_4, out + tile * PAIR_BYTES);
    }
}

}  // namespace hasten
#endif
