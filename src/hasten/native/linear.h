// Linear layers with int8 weights and int8 rows: out = float(x W^T) * weight scale * row scale + bias + residual.
//
// Packed weights: outputs in pairs of tiles (32 outputs), inputs in tiles of 64; for each pair and input tile two blocks of 1 KiB,
// one an output tile, each 16 lines of [16 outputs][4 inputs]. That is the layout of an AMX B tile, and one line feeds one VNNI
// instruction. Behind the tiles stand int32 sums of each output's weights times 128 (VNNI multiplies unsigned by signed bytes).
// Outputs and inputs that do not fill a tile are zero.
//
// Weights of four or three bits have the same order: weight = code * group scale + group offset, integers, one group for each output and
// half an input tile (progressive quantisation, QoQ, 2405.04532), inside int8. For each pair and input tile: two blocks, one an output tile,
// of codes; then, half by half, 32 scales (code * scale fits a byte), and so 32 offsets. Eight lines of codes of the unpacked block, which are
// its groups, lie in `bits` lines of 64 bytes. Four bits: line i has line 2 i in its low nibbles and line 2 i + 1 in its high ones. Three bits: lines 2 i and 2 i + 1 stand in
// bits 0 to 2 and 3 to 5 of line i; bits 6 and 7 of lines 0 and 1 are the low two bits of lines 6 and 7, bits 6 and 7 of line 2 their high
// ones. Unpacked they are int8 weights, so sums and results have int8's bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "rows.h"

namespace hasten {

const std::int64_t TILE_OUTPUTS = 16, TILE_INPUTS = 64, PAIR_OUTPUTS = 32, TILE_BYTES = 1024, PAIR_BYTES = 2048;
const std::int64_t CODE_GROUP = 32, TILE_GROUPS = TILE_INPUTS / CODE_GROUP;  // inputs that share a scale and an offset; groups of a tile
const std::int64_t MOST_INPUTS = 131008;  // 128 * 128 * inputs stays inside int32
const std::int64_t FEW_ROWS = 14;         // up to which VNNI multiplies codes as they are
const std::int64_t MANY_ROWS = 128;       // from which on AMX works panel by panel, on rows by block
const std::int64_t BLOCK_ROWS = 32, BLOCK_BYTES = BLOCK_ROWS * TILE_INPUTS;  // of one pass of AMX over a pair's weights

// Of weights of `bits`: an output tile's codes, and where in a pair's bytes scales and offsets of a group of the tile stand.
constexpr std::int64_t tile_bytes(int bits) { return 128 * bits; }
constexpr std::int64_t scales_at(int bits, std::int64_t group = 0) { return 2 * tile_bytes(bits) + group * PAIR_OUTPUTS; }
constexpr std::int64_t offsets_at(int bits, std::int64_t group = 0) { return scales_at(bits, TILE_GROUPS + group); }
constexpr std::int64_t pair_bytes(int bits) { return bits == 8 ? PAIR_BYTES : offsets_at(bits, TILE_GROUPS); }

inline std::int64_t pairs_of(std::int64_t outputs) { return (outputs + PAIR_OUTPUTS - 1) / PAIR_OUTPUTS; }
inline std::int64_t tiles_of(std::int64_t inputs) { return (inputs + TILE_INPUTS - 1) / TILE_INPUTS; }
inline std::int64_t groups_of(std::int64_t inputs) { return (inputs + CODE_GROUP - 1) / CODE_GROUP; }

struct Linear8 {
    const std::int8_t* x;           // [rows][stride], zero behind the inputs
    const std::uint8_t* x_by_tile;  // [tiles][rows][64] for VNNI: the same plus 128, or as they are where codes are
    const std::int8_t* x_by_block;  // [rows / 32][tiles][32][64] for AMX and many rows
    const std::int16_t* x_wide;     // the same in 16 bits, for AVX2 and int8 weights
    const std::int32_t* x_sums;     // [rows][tiles][2] sums of the inputs of each group, where codes are multiplied as they are
    std::int64_t stride;            // at least 64 * tiles_of(inputs)
    const float* row_scale;         // [rows]
    const std::int8_t* tiles;
    const std::int32_t* sums;       // [32 * pairs] weights' sums times 128
    const float* scale;             // [outputs]
    const float* bias;              // [outputs] or null
    const float* residual;          // [rows][out_stride] or null; may be `out`
    float* out;                     // [rows][out_stride]
    std::int64_t rows, outputs, inputs, out_stride;
    int bits;                       // of the weights: 8, 4 or 3
    RowSource gate;                 // GATE_SILU, GATE_GELU: `outputs` are gates and what they are for, and out[rows][outputs / 2] is what comes of them
};

// One instruction set's kernel: all rows, outputs of the pairs [first, last). False when there is no memory. All but the
// portable one take fewer bits than eight.
using Linear8Range = bool (*)(const Linear8& call, std::int64_t first, std::int64_t last);

bool linear8_generic(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_avx2(const Linear8& call, std::int64_t first, std::int64_t last);
bool progressive_avx2(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_vnni(const Linear8& call, std::int64_t first, std::int64_t last);
bool progressive_vnni(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last);

// Rows as kernels take them: `count` values in 16 bits and zeros up to `stride`; sums of each group, tiles `step` bytes apart.
void widen_row(const std::int8_t* from, std::int64_t count, std::int64_t stride, std::int16_t* to);
void sum_groups(const std::int8_t* x, std::int64_t tiles, std::int64_t step, std::int32_t* sums);

// Float weights [outputs][inputs] to what progressive_pack takes, and a float scale for each output. Finite weights only.
void progressive_round(int bits, const float* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* codes,
                       std::uint8_t* scales, std::int8_t* offsets, float* scale);

// Of packed weights of any bits, sums and all.
std::size_t packed_bytes(int bits, std::int64_t outputs, std::int64_t inputs);
// `codes` [outputs][inputs] of `bits`; `scales` and `offsets` [outputs][groups_of(inputs)].
void progressive_pack(int bits, const std::uint8_t* codes, const std::uint8_t* scales, const std::int8_t* offsets, std::int64_t outputs,
                      std::int64_t inputs, std::uint8_t* packed);

void w8_pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed);
// `count` outputs more behind the `first` that are packed, in memory that has room for them.
void w8_join(const std::int8_t* weights, std::int64_t first, std::int64_t count, std::int64_t inputs, std::uint8_t* packed);
void w8_unpack_rows(const std::uint8_t* packed, const float* scale, std::int64_t inputs, const std::int64_t* picked, std::int64_t rows,
                    float* out);
// Whether linear8 takes a `gate` for so many rows; else the rows of the next layer are made so (RowWork).
bool linear8_gates(std::int64_t rows, std::int64_t outputs);
// `call.tiles`, `sums`, `stride` and the forms of `x` are filled in here; false when there is no memory.
bool linear8(Linear8 call, const std::uint8_t* packed);

// What linear8 does first; then `count` outputs from `first` on (a multiple of 32) of all rows into `out`, lines `stride` apart.
bool linear8_prepare(Linear8& call, const std::uint8_t* packed);
bool linear8_piece(const Linear8& call, std::int64_t first, std::int64_t count, float* out, std::int64_t stride);

// The k largest outputs of each row, descending, equal ones by id: [rows][k]; id -1 where there are fewer (or they are NaN or -inf).
bool linear8_top(const Linear8& call, const std::uint8_t* packed, std::int64_t k, std::int64_t* ids, float* values);

// The same of the `width` values in each of `count` rows, `stride` apart.
void largest(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, std::int64_t k, std::int64_t* ids, float* values);

// The same of the first `width` values of each row and of those at its `places`, so many as its length says; and the sum of
// e^(value - the largest) over those that are less than `reach` below it.
void largest_and_mass(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, const std::int64_t* const* places,
                      const std::int64_t* lengths, std::int64_t k, float reach, std::int64_t* ids, float* values, double* mass);

}  // namespace hasten
