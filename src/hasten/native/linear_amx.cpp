// AMX int8: 16 rows x 16 outputs x 64 inputs an instruction, up to 32 rows and 32 outputs at once in the eight tiles.
#include "linear.h"

#if defined(__x86_64__)
#include "finish_avx512.h"
#include "threads.h"

namespace hasten {
namespace {

const std::int64_t BLOCK_ROWS = 32;    // rows of one pass over a pair's weights
const std::int64_t PANEL_TILES = 32;   // input tiles whose rows stay in the second-level cache while several pairs use them
const std::int64_t PANEL_ROWS = 512;   // rows of one panel
const std::int64_t GROUP_PAIRS = 4;    // pairs that share a panel

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t column_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// Tiles: 0-3 sums (rows 0-15 and 16-31 by low and high outputs), 4-5 rows, 6-7 weights.
void configure(std::int64_t rows) {
    TileConfiguration wanted;
    const auto top = static_cast<std::uint8_t>(rows < 16 ? rows : 16);
    const auto bottom = static_cast<std::uint8_t>(rows <= 16 ? 1 : rows < 32 ? rows - 16 : 16);
    const std::uint8_t count[8] = {top, top, bottom, bottom, top, bottom, 16, 16};
    for (int tile = 0; tile < 8; ++tile) {
        wanted.column_bytes[tile] = 64;
        wanted.rows[tile] = count[tile];
    }
    _tile_loadconfig(&wanted);
}

template <int DISTANCE>
inline void prefetch_pair(const std::int8_t* weights) {
#pragma GCC unroll 32
    for (int line = 0; line < 32; ++line) _mm_prefetch(reinterpret_cast<const char*>(weights + DISTANCE + line * 64), _MM_HINT_T0);
}

// sums[32][32] (+)= rows times one pair's weights over `tiles` input tiles.
template <bool TWO, bool AHEAD>
void multiply(const std::int8_t* x, std::int64_t stride, const std::int8_t* weights, std::int64_t tiles, std::int32_t* sums, bool add) {
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
    for (std::int64_t tile = 0; tile < tiles; ++tile, x += TILE_INPUTS, weights += PAIR_BYTES) {
        if (AHEAD) prefetch_pair<4096>(weights);
        _tile_loadd(4, x, stride);
        _tile_loadd(6, weights, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, weights + TILE_BYTES, 64);
        _tile_dpbssd(1, 4, 7);
        if (TWO) {
            _tile_loadd(5, x + 16 * stride, stride);
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

void multiply_rows(std::int64_t count, bool ahead, const std::int8_t* x, std::int64_t stride, const std::int8_t* weights,
                   std::int64_t tiles, std::int32_t* sums, bool add) {
    if (count > 16) {
        return ahead ? multiply<true, true>(x, stride, weights, tiles, sums, add) : multiply<true, false>(x, stride, weights, tiles, sums, add);
    }
    return ahead ? multiply<false, true>(x, stride, weights, tiles, sums, add) : multiply<false, false>(x, stride, weights, tiles, sums, add);
}

void finish(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t count, const std::int32_t* sums) {
    for (std::int64_t r = 0; r < count; ++r, sums += PAIR_OUTPUTS) {
        finish_pair(call, row + r, pair * PAIR_OUTPUTS, _mm512_load_si512(sums), _mm512_load_si512(sums + 16));
    }
}

// Few rows: every pair's weights are streamed once, with all rows.
void stream(const Linear8& call, std::int64_t first, std::int64_t last) {
    alignas(64) std::int32_t sums[BLOCK_ROWS * PAIR_OUTPUTS];
    const std::int64_t tiles = tiles_of(call.inputs), tail = (call.rows - 1) % BLOCK_ROWS + 1;
    configure(tail);
    for (std::int64_t pair = first; pair < last; ++pair) {
        const std::int8_t* weights = call.tiles + pair * tiles * PAIR_BYTES;
        for (std::int64_t row = 0; row < call.rows; row += BLOCK_ROWS) {
            const std::int64_t left = call.rows - row, count = left < BLOCK_ROWS ? left : BLOCK_ROWS;
            if (call.rows > BLOCK_ROWS && tail != BLOCK_ROWS) configure(count);
            multiply_rows(count, row == 0, call.x + row * call.stride, call.stride, weights, tiles, sums, false);
            finish(call, pair, row, count, sums);
        }
    }
}

// Many rows and inputs: a panel of rows x inputs that fits the cache is used by several pairs before the next one is loaded.
bool panels(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs), padded = (PANEL_ROWS + BLOCK_ROWS) * PAIR_OUTPUTS;
    auto* sums = static_cast<std::int32_t*>(scratch(SCRATCH_SUMS, static_cast<std::size_t>(GROUP_PAIRS * padded * 4)));
    if (sums == nullptr) return false;
    for (std::int64_t top = 0; top < call.rows; top += PANEL_ROWS) {
        const std::int64_t bottom = top + PANEL_ROWS < call.rows ? top + PANEL_ROWS : call.rows;
        for (std::int64_t group = first; group < last; group += GROUP_PAIRS) {
            const std::int64_t end = group + GROUP_PAIRS < last ? group + GROUP_PAIRS : last;
            for (std::int64_t tile = 0; tile < tiles; tile += PANEL_TILES) {
                const std::int64_t some = tile + PANEL_TILES < tiles ? PANEL_TILES : tiles - tile;
                for (std::int64_t pair = group; pair < end; ++pair) {
                    const std::int8_t* weights = call.tiles + (pair * tiles + tile) * PAIR_BYTES;
                    configure(BLOCK_ROWS);
                    for (std::int64_t row = top; row < bottom; row += BLOCK_ROWS) {
                        const std::int64_t count = bottom - row < BLOCK_ROWS ? bottom - row : BLOCK_ROWS;
                        if (count != BLOCK_ROWS) configure(count);
                        std::int32_t* at = sums + (pair - group) * padded + (row - top) * PAIR_OUTPUTS;
                        multiply_rows(count, row == top, call.x + row * call.stride + tile * TILE_INPUTS, call.stride, weights, some, at,
                                      tile != 0);
                        if (tile + some == tiles) finish(call, pair, row, count, at);
                    }
                }
            }
        }
    }
    return true;
}

}  // namespace

void linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last) {
    const bool large = call.rows > 64 && tiles_of(call.inputs) > PANEL_TILES;
    if (!large || !panels(call, first, last)) stream(call, first, last);
    _tile_release();
}

}  // namespace hasten
#endif
