// Packing, the portable kernel, and the choice of kernel. The sums are exact integers and the float work has one order, so every
// kernel gives the same bits.
#include "linear.h"

#include <array>
#include <atomic>
#include <cstring>

#include "rows.h"
#include "threads.h"

namespace hasten {
namespace {

std::int64_t offset_of(std::int64_t output, std::int64_t input, std::int64_t tiles) {
    const std::int64_t pair = output / PAIR_OUTPUTS, half = output % PAIR_OUTPUTS / TILE_OUTPUTS, lane = output % TILE_OUTPUTS;
    const std::int64_t line = input % TILE_INPUTS / 4;
    return (pair * tiles + input / TILE_INPUTS) * PAIR_BYTES + half * TILE_BYTES + line * 64 + lane * 4 + input % 4;
}

Linear8Range kernel_for(Isa isa) {
#if defined(__x86_64__)
    if (isa == AMX) return linear8_amx;
    if (isa == VNNI) return linear8_vnni;
    if (isa == AVX2) return linear8_avx2;
#endif
    (void)isa;
    return linear8_generic;
}

// One row by tile or by block, with the bits of `flip` changed; `to` is its place in the first tile, `step` bytes before its place in the next.
void spread_row(const std::int8_t* from, std::int64_t count, std::int64_t step, std::uint8_t flip, std::uint8_t* to) {
    for (std::int64_t start = 0; start < count; start += TILE_INPUTS, to += step) {
        const std::int64_t some = count - start < TILE_INPUTS ? count - start : TILE_INPUTS;
        for (std::int64_t i = 0; i < some; ++i) to[i] = static_cast<std::uint8_t>(from[start + i]) ^ flip;
        std::memset(to + some, flip, static_cast<std::size_t>(TILE_INPUTS - some));
    }
}

// Fills in what the kernel wants of the rows: padded to whole tiles, for VNNI by tile and moved by 128, for AMX and many rows by block, for
// AVX2 widened; where codes are multiplied as they are, summed. False when there is no memory.
bool prepare_rows(Linear8& call, Isa isa) {
    const std::int64_t tiles = tiles_of(call.inputs), stride = tiles * TILE_INPUTS;
    const bool by_tile = isa == VNNI, few = by_tile && call.bits < 8 && call.rows <= FEW_ROWS;
    const bool wide = isa == AVX2 && call.bits == 8, sums = few || (isa == AVX2 && call.bits < 8);
    const bool by_block = isa == AMX && call.rows > MANY_ROWS, padded = stride != call.inputs && !by_tile && !by_block && !wide;
    call.stride = stride;
    if (!by_tile && !by_block && !wide && !sums && !padded) return true;
    const std::int64_t bytes = wide ? 2 * stride : by_tile || by_block || padded ? stride : 0, line = bytes + (sums ? 4 * TILE_GROUPS * tiles : 0);
    const std::int64_t rows = by_block ? (call.rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS : call.rows;
    auto* copy = static_cast<std::uint8_t*>(scratch(SCRATCH_ROWS, static_cast<std::size_t>(rows * line)));
    if (copy == nullptr) return false;
    const std::int8_t* x = call.x;
    auto* totals = reinterpret_cast<std::int32_t*>(copy + call.rows * bytes);
    auto body = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row) {
            const std::int8_t* from = x + row * call.inputs;
            std::int64_t step = TILE_INPUTS;
            if (by_tile) {
                std::uint8_t* to = copy + row * TILE_INPUTS;
                step = call.rows * TILE_INPUTS;
                spread_row(from, call.inputs, step, few ? 0 : 0x80, to);
                from = reinterpret_cast<const std::int8_t*>(to);
            }
            if (by_block) {
                std::uint8_t* to = copy + row / BLOCK_ROWS * BLOCK_ROWS * stride + row % BLOCK_ROWS * TILE_INPUTS;
                spread_row(from, call.inputs, BLOCK_BYTES, 0, to);
            }
            if (padded) {
                std::uint8_t* to = copy + row * stride;
                std::memcpy(to, from, static_cast<std::size_t>(call.inputs));
                std::memset(to + call.inputs, 0, static_cast<std::size_t>(stride - call.inputs));
                from = reinterpret_cast<const std::int8_t*>(to);
            }
#if defined(__x86_64__)
            if (wide) widen_row(from, call.inputs, stride, reinterpret_cast<std::int16_t*>(copy) + row * stride);
            if (sums) sum_groups(from, tiles, step, totals + row * tiles * TILE_GROUPS);
#endif
        }
    };
    parallel(call.rows, share_rows(call.rows, call.inputs).grain, body);
    if (padded) call.x = reinterpret_cast<const std::int8_t*>(copy);
    call.x_by_tile = copy;
    call.x_by_block = reinterpret_cast<const std::int8_t*>(copy);
    call.x_wide = reinterpret_cast<const std::int16_t*>(copy);
    call.x_sums = totals;
    return true;
}

// Where in a block's codes some bits of a line's stand: they are (byte >> shift & mask) << up.
struct CodeBits {
    std::int64_t line;
    int shift, mask, up;
};

// The two places that a code of line 0 to 7 may have its bits in; a mask of 0: there is no second one.
std::array<CodeBits, 2> places_of(int bits, std::int64_t line) {
    const int odd = static_cast<int>(line % 2);
    if (bits == 4) return {CodeBits{line / 2, 4 * odd, 15, 0}, CodeBits{0, 0, 0, 0}};
    if (line < 6) return {CodeBits{line / 2, 3 * odd, 7, 0}, CodeBits{0, 0, 0, 0}};
    return {CodeBits{odd, 6, 3, 0}, CodeBits{2, 6 + odd, 1, 2}};
}

// Weights of few bits of one pair, input tiles [0, tiles) from `packed` on, as int8 tiles.
void unpack(int bits, const std::int8_t* packed, std::int64_t tiles, std::int8_t* out) {
    for (std::int64_t block = 0; block < tiles * 2; ++block) {
        const std::int8_t* from = packed + block / 2 * pair_bytes(bits);
        const auto* codes = reinterpret_cast<const std::uint8_t*>(from) + block % 2 * tile_bytes(bits);
        for (std::int64_t line = 0; line < 16; ++line, out += 64) {
            const auto* scales = reinterpret_cast<const std::uint8_t*>(from) + scales_at(bits, line / 8) + block % 2 * TILE_OUTPUTS;
            const std::int8_t* offsets = from + offsets_at(bits, line / 8) + block % 2 * TILE_OUTPUTS;
            const auto places = places_of(bits, line % 8);
            const std::uint8_t* eight = codes + line / 8 * 64 * bits;
            for (std::int64_t i = 0; i < 64; ++i) {
                int code = 0;
                for (const CodeBits& at : places) code |= (eight[at.line * 64 + i] >> at.shift & at.mask) << at.up;
                out[i] = static_cast<std::int8_t>(code * scales[i / 4] + offsets[i / 4]);
            }
        }
    }
}

// Weights of few bits, pair by pair, through the portable kernel for int8. False when there is no memory.
bool run_unpacked(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs);
    auto* memory = static_cast<std::int8_t*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(tiles * PAIR_BYTES)));
    if (memory == nullptr) return false;
    for (std::int64_t pair = first; pair < last; ++pair) {
        const std::int64_t skipped = pair * PAIR_OUTPUTS;
        unpack(call.bits, call.tiles + pair * tiles * pair_bytes(call.bits), tiles, memory);
        Linear8 one = call;
        one.bits = 8;
        one.tiles = memory;
        one.sums += skipped;
        one.scale += skipped;
        one.out += skipped;
        one.outputs -= skipped;
        if (one.bias != nullptr) one.bias += skipped;
        if (one.residual != nullptr) one.residual += skipped;
        if (!linear8_generic(one, 0, 1)) return false;
    }
    return true;
}

// Writes one output's int8 weights where they belong; returns their sum times 128.
std::int32_t put_output(const std::int8_t* weights, std::int64_t output, std::int64_t inputs, std::uint8_t* packed) {
    const std::int64_t tiles = tiles_of(inputs);
    std::int32_t sum = 0;
    for (std::int64_t input = 0; input < inputs; input += 4) {
        const std::int64_t some = inputs - input < 4 ? inputs - input : 4;
        std::uint8_t* to = packed + offset_of(output, input, tiles);  // four inputs stand side by side
        if (some == 4) {
            std::memcpy(to, weights + input, 4);
        } else {
            std::memcpy(to, weights + input, static_cast<std::size_t>(some));
        }
    }
    for (std::int64_t input = 0; input < inputs; ++input) sum += weights[input];
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) * 128u);
}

}  // namespace

std::size_t packed_bytes(int bits, std::int64_t outputs, std::int64_t inputs) {
    return static_cast<std::size_t>(pairs_of(outputs) * (tiles_of(inputs) * pair_bytes(bits) + PAIR_OUTPUTS * 4));
}

void w8_pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed) {
    const std::int64_t pairs = pairs_of(outputs), tiles = tiles_of(inputs);
    auto* sums = reinterpret_cast<std::int32_t*>(packed + pairs * tiles * PAIR_BYTES);
    auto body = [&](std::int64_t first, std::int64_t last) {
        std::memset(packed + first * tiles * PAIR_BYTES, 0, static_cast<std::size_t>((last - first) * tiles * PAIR_BYTES));
        for (std::int64_t output = first * PAIR_OUTPUTS; output < last * PAIR_OUTPUTS; ++output) {
            sums[output] = output < outputs ? put_output(weights + output * inputs, output, inputs, packed) : 0;
        }
    };
    parallel(pairs, 1, body);
}

void w8_join(const std::int8_t* weights, std::int64_t first, std::int64_t count, std::int64_t inputs, std::uint8_t* packed) {
    const std::int64_t before = pairs_of(first), after = pairs_of(first + count), bytes = tiles_of(inputs) * PAIR_BYTES;
    auto* sums = reinterpret_cast<std::int32_t*>(packed + after * bytes);
    if (after > before) {
        std::memmove(sums, packed + before * bytes, static_cast<std::size_t>(before * PAIR_OUTPUTS) * 4);
        std::memset(sums + before * PAIR_OUTPUTS, 0, static_cast<std::size_t>((after - before) * PAIR_OUTPUTS) * 4);
        std::memset(packed + before * bytes, 0, static_cast<std::size_t>((after - before) * bytes));
    }
    for (std::int64_t i = 0; i < count; ++i) sums[first + i] = put_output(weights + i * inputs, first + i, inputs, packed);
}

void progressive_pack(int bits, const std::uint8_t* codes, const std::uint8_t* scales, const std::int8_t* offsets, std::int64_t outputs,
                      std::int64_t inputs, std::uint8_t* packed) {
    const std::int64_t pairs = pairs_of(outputs), tiles = tiles_of(inputs), groups = groups_of(inputs), bytes = pair_bytes(bits);
    const int mask = (1 << bits) - 1;
    auto* sums = reinterpret_cast<std::int32_t*>(packed + pairs * tiles * bytes);
    auto body = [&](std::int64_t first, std::int64_t last) {
        std::memset(packed + first * tiles * bytes, 0, static_cast<std::size_t>((last - first) * tiles * bytes));
        for (std::int64_t output = first * PAIR_OUTPUTS; output < last * PAIR_OUTPUTS; ++output) {
            std::int32_t sum = 0;
            for (std::int64_t group = 0; output < outputs && group < groups; ++group) {
                std::uint8_t* to = packed + (output / PAIR_OUTPUTS * tiles + group / TILE_GROUPS) * bytes;
                const std::int64_t in_pair = output % PAIR_OUTPUTS, in_tile = group % TILE_GROUPS, at = output * groups + group;
                to[scales_at(bits, in_tile) + in_pair] = scales[at];
                to[offsets_at(bits, in_tile) + in_pair] = static_cast<std::uint8_t>(offsets[at]);
                std::uint8_t* eight = to + in_pair / 16 * tile_bytes(bits) + in_tile * 64 * bits + in_pair % 16 * 4;
                for (std::int64_t i = 0; i < CODE_GROUP; ++i) {
                    const std::int64_t input = group * CODE_GROUP + i;
                    const int code = input < inputs ? codes[output * inputs + input] & mask : 0;
                    for (const CodeBits& place : places_of(bits, i / 4)) {
                        std::uint8_t& byte = eight[place.line * 64 + i % 4];
                        byte = static_cast<std::uint8_t>(byte | (code >> place.up & place.mask) << place.shift);
                    }
                    sum += static_cast<std::int8_t>(code * scales[at] + offsets[at]);
                }
            }
            sums[output] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) * 128u);
        }
    };
    parallel(pairs, 1, body);
}

void w8_unpack_rows(const std::uint8_t* packed, const float* scale, std::int64_t inputs, const std::int64_t* picked, std::int64_t rows,
                    float* out) {
    const std::int64_t tiles = tiles_of(inputs);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t output = picked[row];
        for (std::int64_t input = 0; input < inputs; ++input) {
            out[row * inputs + input] = static_cast<float>(static_cast<std::int8_t>(packed[offset_of(output, input, tiles)])) * scale[output];
        }
    }
}

bool linear8_generic(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs);
    for (std::int64_t block = first * 2; block < last * 2; ++block) {
        const std::int8_t* start = call.tiles + (block / 2) * tiles * PAIR_BYTES + block % 2 * TILE_BYTES;
        for (std::int64_t row = 0; row < call.rows; ++row) {
            std::int32_t sums[TILE_OUTPUTS] = {};
            for (std::int64_t tile = 0; tile < tiles; ++tile) {
                const std::int8_t* line = start + tile * PAIR_BYTES;
                const std::int8_t* x = call.x + row * call.stride + tile * TILE_INPUTS;
                for (std::int64_t group = 0; group < 16; ++group, line += 64, x += 4) {
                    for (std::int64_t lane = 0; lane < TILE_OUTPUTS; ++lane) {
                        for (std::int64_t i = 0; i < 4; ++i) sums[lane] += std::int32_t(x[i]) * line[lane * 4 + i];
                    }
                }
            }
            for (std::int64_t lane = 0; lane < TILE_OUTPUTS; ++lane) {
                const std::int64_t output = block * TILE_OUTPUTS + lane, at = row * call.out_stride + output;
                if (output >= call.outputs) break;
                float value = static_cast<float>(sums[lane]) * call.scale[output] * call.row_scale[row];
                if (call.bias != nullptr) value += call.bias[output];
                if (call.residual != nullptr) value += call.residual[at];
                call.out[at] = value;
            }
        }
    }
    return true;
}

bool linear8_prepare(Linear8& call, const std::uint8_t* packed) {
    const std::int64_t pairs = pairs_of(call.outputs), tiles = tiles_of(call.inputs);
    if (!prepare_rows(call, current_isa())) return false;
    call.tiles = reinterpret_cast<const std::int8_t*>(packed);
    call.sums = reinterpret_cast<const std::int32_t*>(packed + pairs * tiles * pair_bytes(call.bits));
    call.out_stride = call.gate == PLAIN ? call.outputs : call.outputs / 2;
    return true;
}

namespace {

bool run_pairs(const Linear8& call, std::int64_t first, std::int64_t last) {
    const Isa isa = current_isa();
    if (call.bits < 8 && isa == GENERIC) return run_unpacked(call, first, last);
    return kernel_for(isa)(call, first, last);
}

}  // namespace

bool linear8_piece(const Linear8& call, std::int64_t first, std::int64_t count, float* out, std::int64_t stride) {
    Linear8 one = call;
    one.tiles += first / PAIR_OUTPUTS * tiles_of(call.inputs) * pair_bytes(call.bits);
    one.sums += first;
    one.scale += first;
    if (one.bias != nullptr) one.bias += first;
    one.residual = nullptr;
    one.out = out;
    one.out_stride = stride;
    one.outputs = count;
    return run_pairs(one, 0, pairs_of(count));
}

bool linear8_gates(std::int64_t rows, std::int64_t outputs) {
    return current_isa() == AMX && outputs % (2 * PAIR_OUTPUTS) == 0;
}

bool linear8(Linear8 call, const std::uint8_t* packed) {
    if (call.rows == 0) return true;
    if (!linear8_prepare(call, packed)) return false;
    const std::int64_t pairs = pairs_of(call.out_stride), tiles = tiles_of(call.inputs);
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t first, std::int64_t last) {
        if (!run_pairs(call, first, last)) enough = false;
    };
    // About 128 KiB of weights a piece: long streams, yet small enough to even out threads that are held up.
    const std::int64_t wanted = (std::int64_t(1) << 17) / (tiles * pair_bytes(call.bits) * (call.gate == PLAIN ? 1 : 2));
    // Many rows: long pieces, which use rows in the cache for many pairs, but some for every thread.
    const std::int64_t share = pairs / threads(), least = call.rows <= MANY_ROWS ? 1 : share < 4 ? 4 : share < 12 ? share : 12;
    parallel(pairs, wanted > least ? wanted : least, body);
    return enough;
}

}  // namespace hasten
