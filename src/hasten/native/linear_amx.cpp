// AMX int8: 16 rows x 16 outputs x 64 inputs an instruction, up to 32 rows and 32 outputs at once in the eight tiles.
#include "linear.h"

#if defined(__x86_64__)
#include "codes_avx512.h"
#include "finish_avx512.h"
#include "threads.h"
#if defined(HASTEN_EMULATED_TILES)
#include "emulated_tiles.h"
#endif

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

// Few bits read from memory, unpacked one input tile ahead of use, so that stores are done when tiles are loaded. `room` holds `turn`
// unpacked input tiles, a power of two: all, where later rows want them, or a few that stay in the first-level cache.
template <int BITS>
struct Unpacked {
    const std::int8_t* packed;
    std::int64_t tiles;
    std::int8_t* room;
    std::int64_t last;  // turn - 1

    Unpacked(const std::int8_t* from, std::int64_t count, std::int8_t* to, std::int64_t turn)
        : packed(from), tiles(count), room(to), last(turn - 1) {
        unpack_pair<BITS>(packed, room);
    }
    template <int QUARTER>
    void prepare(std::int64_t tile) {
        if (QUARTER != 0) return;
        prefetch_pair<BITS>(packed + tile * pair_bytes(BITS));
        if (tile + 1 < tiles) unpack_pair<BITS>(packed + (tile + 1) * pair_bytes(BITS), room + ((tile + 1) & last) * PAIR_BYTES);
    }
    const std::int8_t* at(std::int64_t tile) const { return room + (tile & last) * PAIR_BYTES; }
};

// sums[32][32] (+)= rows times one pair's weights over `tiles` input tiles.
template <bool TWO, class Source>
void multiply(const std::int8_t* x, std::int64_t stride, Source& source, std::int64_t tiles, std::int32_t* sums, bool add) {
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
    for (std::int64_t tile = 0; tile < tiles; ++tile, x += TILE_INPUTS) {
        source.template prepare<0>(tile);
        const std::int8_t* weights = source.at(tile);
        _tile_loadd(4, x, stride);
        _tile_loadd(6, weights, 64);
        source.template prepare<1>(tile);
        _tile_dpbssd(0, 4, 6);
        source.template prepare<2>(tile);
        _tile_loadd(7, weights + TILE_BYTES, 64);
        source.template prepare<3>(tile);
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

template <class Source>
void multiply_rows(std::int64_t count, const std::int8_t* x, std::int64_t stride, Source&& source, std::int64_t tiles, std::int32_t* sums,
                   bool add) {
    if (count > 16) return multiply<true>(x, stride, source, tiles, sums, add);
    return multiply<false>(x, stride, source, tiles, sums, add);
}

void finish(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t count, const std::int32_t* sums) {
    for (std::int64_t r = 0; r < count; ++r, sums += PAIR_OUTPUTS) {
        finish_pair(call, row + r, pair * PAIR_OUTPUTS, _mm512_load_si512(sums), _mm512_load_si512(sums + 16));
    }
}

// Few rows: the first block of rows streams every pair's weights from memory, the others find them in the cache (few bits: in
// `room`, unpacked).
template <int BITS>
bool stream(const Linear8& call, std::int64_t first, std::int64_t last) {
    alignas(64) std::int32_t sums[BLOCK_ROWS * PAIR_OUTPUTS];
    const std::int64_t tiles = tiles_of(call.inputs), top = call.rows < BLOCK_ROWS ? call.rows : BLOCK_ROWS;
    std::int64_t turn = 4;
    while (call.rows > BLOCK_ROWS && turn < tiles) turn *= 2;
    auto* room = static_cast<std::int8_t*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(turn * PAIR_BYTES)));
    if (room == nullptr) return false;
    configure(top);
    for (std::int64_t pair = first; pair < last; ++pair) {
        const std::int8_t* weights = call.tiles + pair * tiles * pair_bytes(BITS);
        if constexpr (BITS < 8) {
            multiply_rows(top, call.x, call.stride, Unpacked<BITS>(weights, tiles, room, turn), tiles, sums, false);
            weights = room;
        } else {
            multiply_rows(top, call.x, call.stride, Streamed{weights}, tiles, sums, false);
        }
        finish(call, pair, 0, top, sums);
        for (std::int64_t row = BLOCK_ROWS; row < call.rows; row += BLOCK_ROWS) {
            const std::int64_t left = call.rows - row, count = left < BLOCK_ROWS ? left : BLOCK_ROWS;
            if (count != BLOCK_ROWS) configure(count);
            multiply_rows(count, call.x + row * call.stride, call.stride, Resident{weights}, tiles, sums, false);
            finish(call, pair, row, count, sums);
            if (count != BLOCK_ROWS) configure(top);
        }
    }
    return true;
}

// One pair, input tiles [tile, tile + some), all rows of a panel from `top` on.
template <int BITS>
void panel_pair(const Linear8& call, std::int64_t pair, std::int64_t tile, std::int64_t some, std::int64_t top, std::int64_t bottom,
                std::int8_t* room, std::int32_t* sums) {
    const std::int64_t tiles = tiles_of(call.inputs), at = pair * tiles + tile;
    const std::int8_t* weights = BITS < 8 ? room : call.tiles + at * PAIR_BYTES;
    if constexpr (BITS < 8) unpack_pairs<BITS>(call.tiles + at * pair_bytes(BITS), some, room);
    configure(BLOCK_ROWS);
    for (std::int64_t row = top; row < bottom; row += BLOCK_ROWS, sums += BLOCK_ROWS * PAIR_OUTPUTS) {
        const std::int64_t count = bottom - row < BLOCK_ROWS ? bottom - row : BLOCK_ROWS;
        if (count != BLOCK_ROWS) configure(count);
        const std::int8_t* x = call.x + row * call.stride + tile * TILE_INPUTS;
        if (row == top && BITS == 8) {
            multiply_rows(count, x, call.stride, Streamed{weights}, some, sums, tile != 0);
        } else {
            multiply_rows(count, x, call.stride, Resident{weights}, some, sums, tile != 0);
        }
        if (tile + some == tiles) finish(call, pair, row, count, sums);
    }
}

// Many rows and inputs: a panel of rows x inputs that fits the cache is used by several pairs before the next one is loaded.
template <int BITS>
bool panels(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs), padded = PANEL_ROWS * PAIR_OUTPUTS;
    auto* sums = static_cast<std::int32_t*>(scratch(SCRATCH_SUMS, static_cast<std::size_t>(GROUP_PAIRS * padded * 4)));
    auto* room = static_cast<std::int8_t*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(PANEL_TILES * PAIR_BYTES)));
    if (sums == nullptr || room == nullptr) return false;
    for (std::int64_t top = 0; top < call.rows; top += PANEL_ROWS) {
        const std::int64_t bottom = top + PANEL_ROWS < call.rows ? top + PANEL_ROWS : call.rows;
        for (std::int64_t group = first; group < last; group += GROUP_PAIRS) {
            const std::int64_t end = group + GROUP_PAIRS < last ? group + GROUP_PAIRS : last;
            for (std::int64_t tile = 0; tile < tiles; tile += PANEL_TILES) {
                const std::int64_t some = tile + PANEL_TILES < tiles ? PANEL_TILES : tiles - tile;
                for (std::int64_t pair = group; pair < end; ++pair) {
                    panel_pair<BITS>(call, pair, tile, some, top, bottom, room, sums + (pair - group) * padded);
                }
            }
        }
    }
    return true;
}

template <int BITS>
bool run(const Linear8& call, std::int64_t first, std::int64_t last) {
    const bool large = call.rows > 64 && tiles_of(call.inputs) > PANEL_TILES;
    return large ? panels<BITS>(call, first, last) : stream<BITS>(call, first, last);
}

}  // namespace

bool linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last) {
    const bool enough = call.bits == 8 ? run<8>(call, first, last) : call.bits == 4 ? run<4>(call, first, last) : run<3>(call, first, last);
    _tile_release();
    return enough;
}

}  // namespace hasten
#endif
