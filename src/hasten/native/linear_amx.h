// What AMX int8's kernels share: 16 rows x 16 outputs x 64 inputs an instruction, up to 32 rows and 32 outputs at once in the eight tiles.
#pragma once

#include "codes_avx512.h"
#include "finish_avx512.h"
#include "linear.h"
#include "row_parts.h"
#include "tiles.h"

namespace hasten {

// Many rows, panel by panel; see linear8_amx. False when there is no memory.
bool panels_amx(const Linear8& call, std::int64_t first, std::int64_t last);

namespace {

// Tiles: 0-3 sums (rows 0-15 and 16-31 by low and high outputs), 4-5 rows, 6-7 weights.
inline void configure(std::int64_t rows) {
    const auto top = static_cast<std::uint8_t>(rows < 16 ? rows : 16);
    const auto bottom = static_cast<std::uint8_t>(rows <= 16 ? 1 : rows < 32 ? rows - 16 : 16);
    configure_tiles({top, top, bottom, bottom, top, bottom, 16, 16});
}

// What comes of 16 gates and what they are for: sums of one row, outputs from `from` on.
inline __m512 gated(const Linear8& call, std::int64_t row, std::int64_t from, const std::int32_t* gates, const std::int32_t* ups) {
    const __mmask16 whole = 0xffff;
    const avx512::Floats gate = {{scaled(call, row, from, _mm512_load_si512(gates), whole)}};
    const avx512::Floats up = {{scaled(call, row, from + call.out_stride, _mm512_load_si512(ups), whole)}};
    return ((call.gate == GATE_SILU ? avx512::silu(gate) : avx512::gelu_tanh(gate)) * up).part[0];
}

// Where the weights of one pair come from, input tile after input tile. What makes them come can be spread over quarters, between
// the instructions of one tile.
struct Resident {  // in the cache already
    const std::int8_t* tiles;
    template <int QUARTER>
    void prepare(std::int64_t) {}
    const std::int8_t* at(std::int64_t tile) const { return tiles + tile * PAIR_BYTES; }
};

// Read from memory, shortly ahead of use: asked for evenly, and every second line, because processors with AMX fetch lines by two.
struct Streamed {
    const std::int8_t* tiles;
    template <int QUARTER>
    void prepare(std::int64_t tile) {
        const std::int8_t* ahead = tiles + tile * PAIR_BYTES + 1024 + QUARTER * PAIR_BYTES / 4;
#pragma GCC unroll 4
        for (int line = 0; line < PAIR_BYTES / 4 / 64; line += 2) _mm_prefetch(reinterpret_cast<const char*>(ahead + line * 64), _MM_HINT_T0);
    }
    const std::int8_t* at(std::int64_t tile) const { return tiles + tile * PAIR_BYTES; }
};

// Up to 32 rows of one input tile, lines `stride` apart; `step` bytes before those of the next one.
struct Rows {
    const std::int8_t* at;
    std::int64_t stride, step;
};

// sums[32][32] (+)= rows times one pair's weights over `tiles` input tiles.
template <bool TWO, class Source>
void multiply(Rows x, Source& source, std::int64_t tiles, std::int32_t* sums, bool add) {
    const int line = PAIR_OUTPUTS * 4;
    if (add) {
        _tile_loadd(0, sums, line);
        _tile_loadd(1, sums + 16, line);
        if (TWO) {
            _tile_loadd(2, sums + 16 * PAIR_OUTPUTS, line);
            _tile_loadd(3, sums + 16 * PAIR_OUTPUTS + 16, line);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (TWO) {
            _tile_zero(2);
            _tile_zero(3);
        }
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile, x.at += x.step) {
        source.template prepare<0>(tile);
        const std::int8_t* weights = source.at(tile);
        _tile_loadd(4, x.at, x.stride);
        _tile_loadd(6, weights, 64);
        source.template prepare<1>(tile);
        _tile_dpbssd(0, 4, 6);
        source.template prepare<2>(tile);
        _tile_loadd(7, weights + TILE_BYTES, 64);
        source.template prepare<3>(tile);
        _tile_dpbssd(1, 4, 7);
        if (TWO) {
            _tile_loadd(5, x.at + 16 * x.stride, x.stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, line);
    _tile_stored(1, sums + 16, line);
    if (TWO) {
        _tile_stored(2, sums + 16 * PAIR_OUTPUTS, line);
        _tile_stored(3, sums + 16 * PAIR_OUTPUTS + 16, line);
    }
}

template <class Source>
void multiply_rows(std::int64_t count, Rows x, Source&& source, std::int64_t tiles, std::int32_t* sums, bool add = false) {
    if (count > 16) return multiply<true>(x, source, tiles, sums, add);
    return multiply<false>(x, source, tiles, sums, add);
}

}  // namespace
}  // namespace hasten
