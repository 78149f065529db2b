// Linear layers with int8 weights and int8 rows: out = float(x W^T) * weight scale * row scale + bias + residual.
//
// Packed weights: outputs in pairs of tiles (32 outputs), inputs in tiles of 64; for each pair and input tile two blocks of 1 KiB,
// one an output tile, each 16 lines of [16 outputs][4 inputs]. That is the layout of an AMX B tile, and one line feeds one VNNI
// instruction. Behind the tiles stand int32 sums of each output's weights times 128 (VNNI multiplies unsigned by signed bytes).
// Outputs and inputs that do not fill a tile are zero.
//
// Four-bit weights have the same order: weight = nibble * group scale + group offset, integers, one group for each output and input
// tile (progressive quantisation, QoQ, 2405.04532), inside int8. For each pair and input tile: two blocks of 512 bytes, one an output
// tile, each 8 lines of 64 bytes whose low nibbles are line 2 i and whose high nibbles are line 2 i + 1 of the unpacked block; then
// 2 x 16 scales (0 to 17) and 2 x 16 offsets. Unpacked they are int8 weights, so sums and results have int8's bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace hasten {

const std::int64_t TILE_OUTPUTS = 16, TILE_INPUTS = 64, PAIR_OUTPUTS = 32, TILE_BYTES = 1024, PAIR_BYTES = 2048;
const std::int64_t PAIR_BYTES_4 = 1088, NIBBLES_BYTES = 512, SCALES_AT = 1024, OFFSETS_AT = 1056;
const std::int64_t MOST_INPUTS = 131008;  // 128 * 128 * inputs stays inside int32
const std::int64_t FEW_ROWS = 14;         // up to which VNNI multiplies nibbles as they are

inline std::int64_t pairs_of(std::int64_t outputs) { return (outputs + PAIR_OUTPUTS - 1) / PAIR_OUTPUTS; }
inline std::int64_t tiles_of(std::int64_t inputs) { return (inputs + TILE_INPUTS - 1) / TILE_INPUTS; }

struct Linear8 {
    const std::int8_t* x;           // [rows][stride], zero behind the inputs
    const std::uint8_t* x_by_tile;  // [tiles][rows][64] for VNNI: the same plus 128, or as they are where nibbles are
    const std::int16_t* x_wide;     // the same in 16 bits, for AVX2 and int8 weights
    const std::int32_t* x_sums;     // [rows][tiles] sums of the inputs of each tile, where nibbles are multiplied as they are
    std::int64_t stride;            // at least 64 * tiles_of(inputs)
    const float* row_scale;         // [rows]
    const std::int8_t* tiles;
    const std::int32_t* sums;       // [32 * pairs] weights' sums times 128
    const float* scale;             // [outputs]
    const float* bias;              // [outputs] or null
    const float* residual;          // [rows][out_stride] or null; may be `out`
    float* out;                     // [rows][out_stride]
    std::int64_t rows, outputs, inputs, out_stride;
    bool four_bits;                 // of the weights
};

// One instruction set's kernel: all rows, outputs of the pairs [first, last). False when there is no memory. All but the
// portable one take four bits.
using Linear8Range = bool (*)(const Linear8& call, std::int64_t first, std::int64_t last);

bool linear8_generic(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_avx2(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear4_avx2(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_vnni(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear4_vnni(const Linear8& call, std::int64_t first, std::int64_t last);
bool linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last);

// Rows as kernels take them: `count` values in 16 bits and zeros up to `stride`; sums of 64 inputs each, tiles `step` bytes apart.
void widen_row(const std::int8_t* from, std::int64_t count, std::int64_t stride, std::int16_t* to);
void sum_tiles(const std::int8_t* x, std::int64_t tiles, std::int64_t step, std::int32_t* sums);

// Float weights [outputs][inputs] to what w4_pack takes, and a float scale for each output. Finite weights only.
void round_progressive(const float* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* codes, std::uint8_t* scales,
                       std::int8_t* offsets, float* scale);

std::size_t w4_packed_bytes(std::int64_t outputs, std::int64_t inputs);
// `codes` [outputs][inputs] from 0 to 15; `scales` and `offsets` [outputs][tiles_of(inputs)].
void w4_pack(const std::uint8_t* codes, const std::uint8_t* scales, const std::int8_t* offsets, std::int64_t outputs, std::int64_t inputs,
             std::uint8_t* packed);

std::size_t w8_packed_bytes(std::int64_t outputs, std::int64_t inputs);
void w8_pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed);
void w8_unpack_rows(const std::uint8_t* packed, const float* scale, std::int64_t inputs, const std::int64_t* picked, std::int64_t rows,
                    float* out);
// `call.tiles`, `sums`, `stride` and the forms of `x` are filled in here; false when there is no memory.
bool linear8(Linear8 call, const std::uint8_t* packed);

// What linear8 does first; then `count` outputs from `first` on (a multiple of 32) of all rows into `out`, lines `stride` apart.
bool linear8_prepare(Linear8& call, const std::uint8_t* packed);
bool linear8_piece(const Linear8& call, std::int64_t first, std::int64_t count, float* out, std::int64_t stride);

// The k largest outputs of each row, descending, equal ones by id: [rows][k]; id -1 where there are fewer (or they are NaN or -inf).
bool linear8_top(const Linear8& call, const std::uint8_t* packed, std::int64_t k, std::int64_t* ids, float* values);

// The same of the `width` values in each of `count` rows, `stride` apart.
void largest(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, std::int64_t k, std::int64_t* ids, float* values);

}  // namespace hasten
