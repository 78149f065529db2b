// AMX int8 for few rows: each pair's weights are read from memory once, by the first block of rows.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_amx.h"
#include "threads.h"

namespace hasten {
namespace {

const std::int64_t LEAST_TWINS = 5, MOST_TWINS = 16;  // rows from which on to load them half as often pays, and that fit a tile
const std::int64_t TWIN_TILES = 32;                   // of inputs: longer ones keep two streams apart for too long

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

void finish(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t count, const std::int32_t* sums) {
    for (std::int64_t r = 0; r < count; ++r, sums += PAIR_OUTPUTS) {
        finish_pair(call, row + r, pair * PAIR_OUTPUTS, _mm512_load_si512(sums), _mm512_load_si512(sums + 16));
    }
}

// The same of a pair of gates and the pair that they are for, whose sums come `apart` behind.
void finish_gates(const Linear8& call, std::int64_t pair, std::int64_t row, std::int64_t count, const std::int32_t* sums, std::int64_t apart) {
    for (const std::int32_t* end = sums + count * PAIR_OUTPUTS; sums < end; sums += PAIR_OUTPUTS, ++row) {
        for (std::int64_t half = 0; half < PAIR_OUTPUTS; half += TILE_OUTPUTS) {
            const std::int64_t from = pair * PAIR_OUTPUTS + half;
            _mm512_storeu_ps(call.out + row * call.out_stride + from, gated(call, row, from, sums + half, sums + apart + half));
        }
    }
}

// Up to MOST_TWINS rows times two pairs: the rows are loaded once for both. sums[2][16][32].
void multiply_twins(Rows x, const std::int8_t* first, const std::int8_t* second, std::int64_t tiles, std::int32_t* sums) {
    const int line = PAIR_OUTPUTS * 4;
    Streamed one{first}, other{second};
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t tile = 0; tile < tiles; ++tile, x.at += x.step) {
        one.prepare<0>(tile);
        _tile_loadd(4, x.at, x.stride);
        _tile_loadd(5, one.at(tile), 64);
        one.prepare<1>(tile);
        _tile_dpbssd(0, 4, 5);
        one.prepare<2>(tile);
        _tile_loadd(6, one.at(tile) + TILE_BYTES, 64);
        one.prepare<3>(tile);
        _tile_dpbssd(1, 4, 6);
        other.prepare<0>(tile);
        _tile_loadd(7, other.at(tile), 64);
        other.prepare<1>(tile);
        _tile_dpbssd(2, 4, 7);
        other.prepare<2>(tile);
        _tile_loadd(5, other.at(tile) + TILE_BYTES, 64);
        other.prepare<3>(tile);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_stored(0, sums, line);
    _tile_stored(1, sums + 16, line);
    _tile_stored(2, sums + MOST_TWINS * PAIR_OUTPUTS, line);
    _tile_stored(3, sums + MOST_TWINS * PAIR_OUTPUTS + 16, line);
}

// From a pair of gates to the pair that they are for; 0 where there are none.
std::int64_t apart_of(const Linear8& call) { return call.gate == PLAIN ? 0 : call.outputs / 2 / PAIR_OUTPUTS; }

// Two pairs at a time of int8 weights: neighbours, or gates and what they are for. Returns the first pair that is left.
std::int64_t stream_twins(const Linear8& call, std::int64_t first, std::int64_t last) {
    alignas(64) std::int32_t sums[2 * MOST_TWINS * PAIR_OUTPUTS];
    const std::int64_t tiles = tiles_of(call.inputs), apart = apart_of(call), step = apart > 0 ? 1 : 2;
    const auto top = static_cast<std::uint8_t>(call.rows);
    configure_tiles({top, top, top, top, top, 16, 16, 16});
    for (; first + step <= last; first += step) {
        const std::int8_t* weights = call.tiles + first * tiles * PAIR_BYTES;
        multiply_twins({call.x, call.stride, TILE_INPUTS}, weights, weights + (apart > 0 ? apart : 1) * tiles * PAIR_BYTES, tiles, sums);
        if (apart > 0) {
            finish_gates(call, first, 0, call.rows, sums, MOST_TWINS * PAIR_OUTPUTS);
        } else {
            finish(call, first, 0, call.rows, sums);
            finish(call, first + 1, 0, call.rows, sums + MOST_TWINS * PAIR_OUTPUTS);
        }
    }
    return first;
}

// Few rows: the first block of rows streams every pair's weights from memory, the others find them in the cache (few bits: in
// `room`, unpacked).
template <int BITS>
struct Stream {
    const Linear8& call;
    const std::int64_t tiles = tiles_of(call.inputs), top = call.rows < BLOCK_ROWS ? call.rows : BLOCK_ROWS;
    std::int64_t turn = 4;
    std::int8_t* room = nullptr;  // of a pair, and of that which its gates are for

    explicit Stream(const Linear8& of) : call(of) {
        while (call.rows > BLOCK_ROWS && turn < tiles) turn *= 2;
        room = static_cast<std::int8_t*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(2 * turn * PAIR_BYTES)));
    }

    const std::int8_t* weights_of(std::int64_t pair) const { return call.tiles + pair * tiles * pair_bytes(BITS); }

    void first_block(std::int64_t pair, std::int8_t* unpacked, std::int32_t* sums) const {
        const Rows x = {call.x, call.stride, TILE_INPUTS};
        if constexpr (BITS < 8) {
            multiply_rows(top, x, Unpacked<BITS>(weights_of(pair), tiles, unpacked, turn), tiles, sums);
        } else {
            multiply_rows(top, x, Streamed{weights_of(pair)}, tiles, sums);
        }
    }

    void later_block(std::int64_t row, std::int64_t count, std::int64_t pair, const std::int8_t* unpacked, std::int32_t* sums) const {
        const std::int8_t* weights = BITS < 8 ? unpacked : weights_of(pair);
        multiply_rows(count, {call.x + row * call.stride, call.stride, TILE_INPUTS}, Resident{weights}, tiles, sums);
    }

    void run(std::int64_t first, std::int64_t last) const {
        const std::int64_t many = BLOCK_ROWS * PAIR_OUTPUTS, apart = apart_of(call);
        alignas(64) std::int32_t sums[2 * many];
        std::int8_t* other = room + turn * PAIR_BYTES;
        configure(top);
        for (std::int64_t pair = first; pair < last; ++pair) {
            first_block(pair, room, sums);
            if (apart > 0) first_block(pair + apart, other, sums + many);
            done(pair, 0, top, sums, apart > 0);
            for (std::int64_t row = BLOCK_ROWS; row < call.rows; row += BLOCK_ROWS) {
                const std::int64_t left = call.rows - row, count = left < BLOCK_ROWS ? left : BLOCK_ROWS;
                if (count != BLOCK_ROWS) configure(count);
                later_block(row, count, pair, room, sums);
                if (apart > 0) later_block(row, count, pair + apart, other, sums + many);
                done(pair, row, count, sums, apart > 0);
                if (count != BLOCK_ROWS) configure(top);
            }
        }
    }

    void done(std::int64_t pair, std::int64_t row, std::int64_t count, const std::int32_t* sums, bool gates) const {
        if (gates) return finish_gates(call, pair, row, count, sums, BLOCK_ROWS * PAIR_OUTPUTS);
        finish(call, pair, row, count, sums);
    }
};

template <int BITS>
bool stream(const Linear8& call, std::int64_t first, std::int64_t last) {
    const Stream<BITS> all(call);
    if (all.room == nullptr) return false;
    const bool twins = BITS == 8 && call.rows >= LEAST_TWINS && call.rows <= MOST_TWINS && all.tiles <= TWIN_TILES;
    all.run(twins ? stream_twins(call, first, last) : first, last);
    return true;
}

template <int BITS>
bool run(const Linear8& call, std::int64_t first, std::int64_t last) {
    return call.rows > MANY_ROWS ? panels_amx(call, first, last) : stream<BITS>(call, first, last);
}

}  // namespace

bool linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last) {
    const bool enough = call.bits == 8 ? run<8>(call, first, last) : call.bits == 4 ? run<4>(call, first, last) : run<3>(call, first, last);
    _tile_release();
    return enough;
}

}  // namespace hasten
#endif
