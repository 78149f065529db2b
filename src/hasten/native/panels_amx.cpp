// AMX int8 for many rows: a panel of rows x inputs that fits the caches is used by a group of pairs before the next one is loaded, and
// their sums become floats once all inputs are through, so that whole stretches of a row are written. Weights are asked for while those
// before them are used.
#include "linear.h"

#if defined(__x86_64__)
#include "linear_amx.h"
#include "threads.h"

namespace hasten {
namespace {

const std::int64_t PANEL_TILES = 6;  // input tiles of a panel: a pair's weights stay in the first-level cache beside the rows
const std::int64_t PANEL_ROWS = 512;  // rows of a panel, which stay in the second-level cache with the sums of a group
const std::int64_t SHORT_TILES = 32;  // of inputs of which all of a panel's rows stay there, whatever else does
const std::int64_t SHORT_GROUP = 8, LONG_GROUP = 12;  // pairs: many, where other rows take the place of a panel's when they are through
const std::int64_t PANEL_SUMS = PANEL_ROWS * PAIR_OUTPUTS;

// Bytes that will be wanted next, asked for evenly while `turns` others are worked on.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;
    std::int64_t lines = 0;  // a turn

    Ahead() = default;
    Ahead(const std::int8_t* from, std::int64_t bytes, std::int64_t turns)
        : at(reinterpret_cast<const char*>(from)), end(at + bytes), lines((bytes / 64 + turns) / turns) {}

    void ask() {
        for (std::int64_t line = 0; line < lines && at < end; ++line, at += 64) _mm_prefetch(at, _MM_HINT_T1);
    }
};

// In the cache already; others are asked for.
struct Asking {
    const std::int8_t* tiles;
    Ahead& next;
    template <int QUARTER>
    void prepare(std::int64_t) { next.ask(); }
    const std::int8_t* at(std::int64_t tile) const { return tiles + tile * PAIR_BYTES; }
};

// Input tiles [first, first + count) of one pair.
struct Piece {
    std::int64_t pair, first, count;
};

template <int BITS>
const std::int8_t* weights_of(const Linear8& call, const Piece& piece) {
    return call.tiles + (piece.pair * tiles_of(call.inputs) + piece.first) * pair_bytes(BITS);
}

// The rows [top, bottom) times one piece, while `next` is asked for.
template <int BITS>
void multiply_piece(const Linear8& call, const Piece& piece, const Piece* next, std::int64_t top, std::int64_t bottom, std::int8_t* room,
                    std::int32_t* sums) {
    const std::int64_t blocks = (bottom - top + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const std::int8_t* weights = weights_of<BITS>(call, piece);
    if constexpr (BITS < 8) {
        unpack_pairs<BITS>(weights, piece.count, room);
        weights = room;
    }
    Ahead ahead;
    if (next != nullptr) ahead = Ahead(weights_of<BITS>(call, *next), next->count * pair_bytes(BITS), blocks * piece.count * 4);
    configure(BLOCK_ROWS);
    for (std::int64_t row = top; row < bottom; row += BLOCK_ROWS, sums += BLOCK_ROWS * PAIR_OUTPUTS) {
        const std::int64_t count = bottom - row < BLOCK_ROWS ? bottom - row : BLOCK_ROWS;
        if (count != BLOCK_ROWS) configure(count);
        const Rows x = {call.x_by_block + row * call.stride + piece.first * BLOCK_BYTES, TILE_INPUTS, BLOCK_BYTES};
        multiply_rows(count, x, Asking{weights, ahead}, piece.count, sums, piece.first != 0);
    }
}

// The pairs of a group, in the order of their sums: of a gated layer each gate's and then that of what it is for.
struct Group {
    std::int64_t first, count, apart;  // apart: pairs between a gate and what it is for, 0 where there are none

    std::int64_t step() const { return apart > 0 ? 2 : 1; }  // from one result to the next
    std::int64_t pair(std::int64_t index) const { return apart == 0 ? first + index : first + index / 2 + index % 2 * apart; }
};

// Sums of one row, of a pair of gates and the pair that they are for.
inline void finish_gated(const Linear8& call, std::int64_t row, std::int64_t pair, const std::int32_t* gates, const std::int32_t* ups) {
    for (std::int64_t half = 0; half < 2; ++half, gates += TILE_OUTPUTS, ups += TILE_OUTPUTS) {
        const std::int64_t from = pair * PAIR_OUTPUTS + half * TILE_OUTPUTS;
        const __m512 value = gated(call, row, from, gates, ups);
        float* to = call.out + row * call.out_stride + from;
        if (reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
            _mm512_stream_ps(to, value);
        } else {
            _mm512_storeu_ps(to, value);
        }
    }
}

// All sums of one row of a group as floats; of a gated layer, gates and what they are for multiplied.
inline void finish_row(const Linear8& call, std::int64_t row, const Group& group, const std::int32_t* sums) {
    for (std::int64_t index = 0; index < group.count; index += group.step(), sums += group.step() * PANEL_SUMS) {
        const std::int64_t pair = group.pair(index);
        if (group.apart > 0) {
            finish_gated(call, row, pair, sums, sums + PANEL_SUMS);
        } else {
            finish_pair(call, row, pair * PAIR_OUTPUTS, _mm512_load_si512(sums), _mm512_load_si512(sums + 16));
        }
    }
}

template <int BITS>
void multiply_group(const Linear8& call, const Group& group, std::int64_t top, std::int64_t bottom, std::int8_t* room, std::int32_t* sums) {
    const std::int64_t tiles = tiles_of(call.inputs), pieces = (tiles + PANEL_TILES - 1) / PANEL_TILES, all = pieces * group.count;
    const auto piece_at = [&](std::int64_t index) {
        const std::int64_t number = index / group.count, first = tiles * number / pieces;
        return Piece{group.pair(index % group.count), first, tiles * (number + 1) / pieces - first};
    };
    for (std::int64_t index = 0; index < all; ++index) {
        const Piece next = piece_at(index + 1 < all ? index + 1 : index);
        multiply_piece<BITS>(call, piece_at(index), index + 1 < all ? &next : nullptr, top, bottom, room, sums + index % group.count * PANEL_SUMS);
    }
}

template <int BITS>
bool panels(const Linear8& call, std::int64_t first, std::int64_t last) {
    const bool gated = call.gate != PLAIN;
    const std::int64_t most = tiles_of(call.inputs) <= SHORT_TILES ? SHORT_GROUP : LONG_GROUP, units = gated ? most / 2 : most;
    const std::int64_t apart = gated ? call.outputs / 2 / PAIR_OUTPUTS : 0;
    auto* sums = static_cast<std::int32_t*>(scratch(SCRATCH_SUMS, static_cast<std::size_t>(most * PANEL_SUMS * 4)));
    auto* room = static_cast<std::int8_t*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(PANEL_TILES * PAIR_BYTES)));
    if (sums == nullptr || room == nullptr) return false;
    for (std::int64_t top = 0; top < call.rows; top += PANEL_ROWS) {
        const std::int64_t bottom = top + PANEL_ROWS < call.rows ? top + PANEL_ROWS : call.rows;
        for (std::int64_t unit = first; unit < last; unit += units) {
            const std::int64_t end = unit + units < last ? unit + units : last;
            const Group group = {unit, gated ? 2 * (end - unit) : end - unit, apart};
            multiply_group<BITS>(call, group, top, bottom, room, sums);
            for (std::int64_t row = top; row < bottom; ++row) {
                finish_row(call, row, group, sums + (row - top) * PAIR_OUTPUTS);
            }
        }
    }
    _mm_sfence();  // others read what went past the caches
    return true;
}

}  // namespace

bool panels_amx(const Linear8& call, std::int64_t first, std::int64_t last) {
    if (call.bits == 8) return panels<8>(call, first, last);
    return call.bits == 4 ? panels<4>(call, first, last) : panels<3>(call, first, last);
}

}  // namespace hasten
#endif
