// Linear layers over the codes and scales of GGUF's block formats, as they lie in the file: nothing is rounded a second time.
//
// Rows are rounded to int8 with one float scale for every 32 inputs. A result is, in this order and with these roundings,
//   flat formats (one scale d, perhaps one minimum m, for 32 inputs): for each group  acc = fma(float(dot) * x_scale, d, acc), then
//     acc = fma(m, x_scale * x_sum, acc);
//   super-blocks (float d and minimum scale e for 256 inputs, integer scales and minimums inside): for each group
//     part = fma(float(dot), x_scale, part), low = fma(float(minimum), x_scale * x_sum, low); for each super-block
//     acc = fma(d, part, acc), then acc = fma(-e, low, acc);
// then bias, then residual. `dot` is an exact int32 sum that holds the integer scales, `x_sum` the exact sum of a group's row codes.
//
// Packed: strips of sixteen outputs. A strip is a run of chunks (one block of the format for each of the sixteen outputs), in lines that
// hold the same thing for each output in turn, so that one vector register serves sixteen outputs (AVX-512) or one half of them
// (AVX2), nothing is summed across lanes, and memory is read as one stream. A packed strip takes the file's own number of bytes,
// rounded up to a multiple of 64.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rows.h"

namespace hasten {

// Numbers of ggml's tensor types (ggml.h).
enum GroupedKind : std::int32_t { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

const std::int64_t STRIP_OUTPUTS = 16, HALF_OUTPUTS = 8, GROUP_INPUTS = 32;
const std::int64_t MOST_GROUPED_INPUTS = std::int64_t(1) << 24;

constexpr bool is_grouped(std::int32_t kind) {
    return kind == Q4_0 || kind == Q4_1 || kind == Q5_0 || kind == Q5_1 || kind == Q8_0 || kind == Q4_K || kind == Q5_K || kind == Q6_K;
}
constexpr bool has_super_blocks(std::int32_t kind) { return kind >= Q4_K; }
constexpr std::int64_t block_inputs(std::int32_t kind) { return has_super_blocks(kind) ? 256 : 32; }
constexpr std::int64_t block_bytes(std::int32_t kind) {
    return kind == Q4_0 ? 18 : kind == Q4_1 ? 20 : kind == Q5_0 ? 22 : kind == Q5_1 ? 24 : kind == Q8_0 ? 34 : kind == Q4_K ? 144 : kind == Q5_K ? 176 : 210;
}
constexpr int code_bits(std::int32_t kind) {
    return kind == Q8_0 ? 8 : kind == Q6_K ? 6 : kind == Q5_0 || kind == Q5_1 || kind == Q5_K ? 5 : 4;
}
// What is stored beside d: a minimum that is added (flat formats) or scales of integer minimums that are subtracted (super-blocks).
constexpr bool has_minimum(std::int32_t kind) { return kind == Q4_1 || kind == Q5_1 || kind == Q4_K || kind == Q5_K; }
// What is subtracted from every code of a flat format.
constexpr int zero_code(std::int32_t kind) { return kind == Q4_0 ? 8 : kind == Q5_0 ? 16 : 0; }
// Bytes of a chunk before the codes of its first group, and of one group's codes.
constexpr std::int64_t header_bytes(std::int32_t kind) { return kind == Q6_K ? 288 : has_super_blocks(kind) ? 256 : has_minimum(kind) ? 64 : 32; }
constexpr std::int64_t group_bytes(std::int32_t kind) { return code_bits(kind) * 64; }

// Kernels take GROUPS groups together: a super-block, or as many blocks of a flat format. Bytes from one group's codes to the next
// one's, and of GROUPS groups.
const int GROUPS = 8;
constexpr std::int64_t group_stride(std::int32_t kind) { return has_super_blocks(kind) ? group_bytes(kind) : block_bytes(kind) * STRIP_OUTPUTS; }
constexpr std::int64_t run_bytes(std::int32_t kind) { return block_bytes(kind) * STRIP_OUTPUTS * (GROUPS * GROUP_INPUTS / block_inputs(kind)); }

constexpr std::int64_t strip_bytes(std::int32_t kind, std::int64_t inputs) {
    return (inputs / block_inputs(kind) * block_bytes(kind) * STRIP_OUTPUTS + 63) / 64 * 64;
}
constexpr std::int64_t strips_of(std::int64_t outputs) { return (outputs + STRIP_OUTPUTS - 1) / STRIP_OUTPUTS; }

// Outputs that share a format and follow each other in a layer.
struct GroupedPart {
    const std::uint8_t* packed;
    std::int64_t outputs;
    std::int32_t kind;
};

// Rows rounded in groups of 32 inputs. What neighbouring rows have of one group stands side by side, at distances that are known when a
// kernel is compiled.
struct GroupedRows {
    std::int8_t* codes;       // [groups][rows][32], -127 to 127
    float* scale;             // [groups][rows]
    float* scaled_sum;        // [groups][rows] scale times the sum of the group's codes
    std::int16_t* half_sums;  // [groups][rows][2] sums of codes of each half of a group
    std::int64_t rows, inputs;

    std::int64_t groups() const { return inputs / GROUP_INPUTS; }
    std::int64_t at(std::int64_t row, std::int64_t group) const { return group * rows + row; }
};

struct GroupedCall {
    GroupedRows x;
    const float* bias;      // [outputs] or null
    const float* residual;  // [rows][outputs] or null
    float* out;             // [rows][outputs]
    std::int64_t outputs;
};

// Strips [first, last) of a part whose first output is the layer's `offset`, for rows [row, row + count), count at most MOST_PANEL.
using GroupedRange = void (*)(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                              std::int64_t row, std::int64_t count);
const std::int64_t MOST_PANEL = 64;

void grouped_generic(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                     std::int64_t row, std::int64_t count);
void grouped_avx2(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                  std::int64_t row, std::int64_t count);

void grouped_vnni(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                  std::int64_t row, std::int64_t count);

// What grouped_avx2 does with more than a few rows.
void grouped_avx2_panel(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                        std::int64_t row, std::int64_t count);

// Make groups [first, last) of a row and round them.
using RoundFunction = void (*)(const RowWork& work, const GroupedRows& rounded, std::int64_t row, std::int64_t first, std::int64_t last);
namespace generic {
void round_groups(const RowWork& work, const GroupedRows& rounded, std::int64_t row, std::int64_t first, std::int64_t last);
}
namespace avx2 {
void round_groups(const RowWork& work, const GroupedRows& rounded, std::int64_t row, std::int64_t first, std::int64_t last);
}
namespace avx512 {
void round_groups(const RowWork& work, const GroupedRows& rounded, std::int64_t row, std::int64_t first, std::int64_t last);
}

void grouped_linear(const GroupedCall& call, const GroupedPart* parts, std::int64_t count);
// One strip of a layer of one part, for rows [row, row + count), count at most MOST_PANEL; with the bits that grouped_linear gives.
void grouped_strip(const GroupedCall& call, const GroupedPart& part, std::int64_t strip, std::int64_t row, std::int64_t count);
// Rows as `work` makes them, of which neither a rotation nor places for codes are taken.
void round_in_groups(const RowWork& work, const GroupedRows& rounded);

// One output's block taken apart. Halves are float16 bits; codes and integers are as stored (unsigned, but Q8_0's codes and Q6_K's
// scales are two's complement).
struct Block {
    std::uint16_t d, minimum_scale;
    std::uint8_t scales[16], minimums[8], codes[256];
};

float half_to_float(std::uint16_t half);
void read_block(std::int32_t kind, const std::uint8_t* raw, Block& block);
void put_lane(std::int32_t kind, const Block& block, std::int64_t lane, std::uint8_t* chunk);
void get_lane(std::int32_t kind, const std::uint8_t* chunk, std::int64_t lane, Block& block);

// `raw` [outputs][bytes of a row], as in the file, to strips.
void grouped_pack(std::int32_t kind, const std::uint8_t* raw, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed);
// Some outputs of a packed matrix as a packed matrix of their own.
void grouped_pick(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked, std::int64_t count,
                  std::uint8_t* out);
// Some outputs of a packed matrix as floats [count][inputs], with the bits of the loaders' dequantisation.
void grouped_unpack_rows(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked, std::int64_t count,
                         float* out);

}  // namespace hasten
