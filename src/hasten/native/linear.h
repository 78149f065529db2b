// Linear layers with int8 weights and int8 rows: out = float(x W^T) * weight scale * row scale + bias + residual.
//
// Packed weights: outputs in pairs of tiles (32 outputs), inputs in tiles of 64; for each pair and input tile two blocks of 1 KiB,
// one an output tile, each 16 lines of [16 outputs][4 inputs]. That is the layout of an AMX B tile, and one line feeds one VNNI
// instruction. Behind the tiles stand int32 sums of each output's weights times 128 (VNNI multiplies unsigned by signed bytes).
// Outputs and inputs that do not fill a tile are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace hasten {

const std::int64_t TILE_OUTPUTS = 16, TILE_INPUTS = 64, PAIR_OUTPUTS = 32, TILE_BYTES = 1024, PAIR_BYTES = 2048;
const std::int64_t MOST_INPUTS = 131008;  // 128 * 128 * inputs stays inside int32

inline std::int64_t pairs_of(std::int64_t outputs) { return (outputs + PAIR_OUTPUTS - 1) / PAIR_OUTPUTS; }
inline std::int64_t tiles_of(std::int64_t inputs) { return (inputs + TILE_INPUTS - 1) / TILE_INPUTS; }

struct Linear8 {
    const std::int8_t* x;         // [rows][stride]; bytes behind the inputs may be anything, weights are zero there
    const std::uint8_t* x_moved;  // the same plus 128, for VNNI
    std::int64_t stride;          // at least 64 * tiles_of(inputs)
    const float* row_scale;       // [rows]
    const std::int8_t* tiles;
    const std::int32_t* sums;     // [32 * pairs] weights' sums times 128
    const float* scale;           // [outputs]
    const float* bias;            // [outputs] or null
    const float* residual;        // [rows][outputs] or null; may be `out`
    float* out;                   // [rows][outputs]
    std::int64_t rows, outputs, inputs;
};

// One instruction set's kernel: all rows, outputs of the pairs [first, last).
using Linear8Range = void (*)(const Linear8& call, std::int64_t first, std::int64_t last);

void linear8_generic(const Linear8& call, std::int64_t first, std::int64_t last);
void linear8_avx2(const Linear8& call, std::int64_t first, std::int64_t last);
void linear8_vnni(const Linear8& call, std::int64_t first, std::int64_t last);
void linear8_amx(const Linear8& call, std::int64_t first, std::int64_t last);

std::size_t w8_packed_bytes(std::int64_t outputs, std::int64_t inputs);
void w8_pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed);
void w8_unpack_rows(const std::uint8_t* packed, const float* scale, std::int64_t inputs, const std::int64_t* picked, std::int64_t rows,
                    float* out);
// `call.tiles`, `sums`, `stride` and `x_moved` are filled in here; false when there is no memory.
bool linear8(Linear8 call, const std::uint8_t* packed);

}  // namespace hasten
