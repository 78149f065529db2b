// Between GGUF's blocks and strips of sixteen outputs. Layouts of the blocks: ggml-common.h of ggml.
#include <cstring>

#include "grouped.h"
#include "threads.h"

namespace hasten {
namespace {

std::uint16_t half_at(const std::uint8_t* from) { return static_cast<std::uint16_t>(from[0] | from[1] << 8); }

void put_half(std::uint8_t* line, std::int64_t lane, std::uint16_t half) {
    line[2 * lane] = static_cast<std::uint8_t>(half);
    line[2 * lane + 1] = static_cast<std::uint8_t>(half >> 8);
}

void nibbles(const std::uint8_t* packed, int count, std::uint8_t* codes) {
    for (int i = 0; i < count; ++i) {
        codes[i] = packed[i] & 15;
        codes[count + i] = packed[i] >> 4;
    }
}

void fifth_bits(const std::uint8_t* bits, std::uint8_t* codes) {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<std::uint8_t>(codes[i] | ((bits[i / 8] >> i % 8 & 1) << 4));
}

// Twelve bytes of a Q4_K or Q5_K block: two times eight 6-bit numbers.
void six_bit_numbers(const std::uint8_t* packed, Block& block) {
    for (int i = 0; i < 4; ++i) {
        const std::uint8_t first = packed[i], second = packed[4 + i], third = packed[8 + i];
        block.scales[i] = first & 63;
        block.minimums[i] = second & 63;
        block.scales[4 + i] = static_cast<std::uint8_t>((third & 15) | (first >> 6) << 4);
        block.minimums[4 + i] = static_cast<std::uint8_t>(third >> 4 | (second >> 6) << 4);
    }
}

// Where the lanes' lines of 32 bytes, and Q4_K's three planes of integers, begin in a chunk. A plane has four bytes, eight lanes each, of
// the strip's first half, then those of the second.
const int MINIMUM_AT = 32, FIRST_AT = 64, SECOND_AT = 128, THIRD_AT = 192, SCALES_AT = 32;

std::int64_t in_plane(int i, std::int64_t lane) { return lane / HALF_OUTPUTS * 32 + i * HALF_OUTPUTS + lane % HALF_OUTPUTS; }

std::uint32_t word_at(const std::uint8_t* from) {
    std::uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
}

void put_word(std::uint8_t* to, std::uint32_t word) { std::memcpy(to, &word, 4); }

// Each byte of a word on its own.
const std::uint32_t NIBBLE = 0x0f0f0f0f, ONE_BIT = 0x01010101, TWO_BITS = 0x03030303;

// Codes of one group, in lines of 64 bytes: four bytes an output, so that byte i of line j is input 4 j + i. Four-bit codes: low nibbles
// are the group's first half, high nibbles its second. Before them stand the bits above: fifth bits in one line, bit j for line j;
// fifth and sixth bits in two lines, one a half, bits 2 j and 2 j + 1 for line j of the half.
void put_codes(int bits, const std::uint8_t* codes, std::int64_t lane, std::uint8_t* group) {
    group += lane * 4;
    if (bits == 8) {
        for (int line = 0; line < 8; ++line) put_word(group + line * 64, word_at(codes + line * 4));
        return;
    }
    std::uint32_t fifth = 0, upper[2] = {};
    for (int line = 0; line < 8; ++line) {
        const std::uint32_t above = word_at(codes + line * 4) >> 4;
        fifth |= (above & ONE_BIT) << line;
        upper[line / 4] |= (above & TWO_BITS) << line % 4 * 2;
    }
    if (bits == 5) put_word(group, fifth);
    for (int half = 0; half < 2 && bits == 6; ++half) put_word(group + half * 64, upper[half]);
    for (int line = 0; line < 4; ++line) {
        const std::uint32_t low = word_at(codes + line * 4) & NIBBLE, high = word_at(codes + 16 + line * 4) & NIBBLE;
        put_word(group + (bits - 4 + line) * 64, low | high << 4);
    }
}

void get_codes(int bits, const std::uint8_t* group, std::int64_t lane, std::uint8_t* codes) {
    group += lane * 4;
    for (int line = 0; line < 8; ++line) {
        std::uint32_t word = bits == 8 ? word_at(group + line * 64) : word_at(group + (bits - 4 + line % 4) * 64) >> line / 4 * 4 & NIBBLE;
        if (bits == 5) word |= (word_at(group) >> line & ONE_BIT) << 4;
        if (bits == 6) word |= (word_at(group + line / 4 * 64) >> line % 4 * 2 & TWO_BITS) << 4;
        put_word(codes + line * 4, word);
    }
}

void dequantise(std::int32_t kind, const Block& block, float* out) {
    const float d = half_to_float(block.d), low = half_to_float(block.minimum_scale);
    for (int i = 0; i < block_inputs(kind); ++i) {
        const std::uint8_t code = block.codes[i];
        if (kind == Q8_0) {
            out[i] = static_cast<float>(static_cast<std::int8_t>(code)) * d;
        } else if (kind == Q6_K) {
            out[i] = static_cast<float>(code - 32) * (d * static_cast<float>(static_cast<std::int8_t>(block.scales[i / 16])));
        } else if (has_super_blocks(kind)) {
            out[i] = static_cast<float>(code) * (d * block.scales[i / 32]) - low * block.minimums[i / 32];
        } else {
            out[i] = static_cast<float>(code - zero_code(kind)) * d;
            if (has_minimum(kind)) out[i] += low;
        }
    }
}

}  // namespace

float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign != 0 ? -value : value;
    }
    const std::uint32_t word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    std::memcpy(&value, &word, 4);
    return value;
}

void read_block(std::int32_t kind, const std::uint8_t* raw, Block& block) {
    block.minimum_scale = 0;
    if (kind == Q6_K) {
        for (int half = 0; half < 2; ++half) {
            const std::uint8_t *low = raw + half * 64, *high = raw + 128 + half * 32;
            for (int i = 0; i < 128; ++i) {
                const int nibble = i < 64 ? low[i] & 15 : low[i - 64] >> 4;
                block.codes[half * 128 + i] = static_cast<std::uint8_t>(nibble | (high[i % 32] >> i / 32 * 2 & 3) << 4);
            }
        }
        std::memcpy(block.scales, raw + 192, 16);
        block.d = half_at(raw + 208);
        return;
    }
    block.d = half_at(raw);
    if (has_minimum(kind)) block.minimum_scale = half_at(raw + 2);
    const std::uint8_t* rest = raw + (has_minimum(kind) ? 4 : 2);
    if (has_super_blocks(kind)) {
        six_bit_numbers(rest, block);
        const std::uint8_t* packed = rest + (kind == Q5_K ? 44 : 12);
        for (int pair = 0; pair < 4; ++pair) nibbles(packed + pair * 32, 32, block.codes + pair * 64);
        if (kind == Q5_K) {
            for (int i = 0; i < 256; ++i) block.codes[i] = static_cast<std::uint8_t>(block.codes[i] | (rest[12 + i % 32] >> i / 32 & 1) << 4);
        }
    } else if (kind == Q8_0) {
        std::memcpy(block.codes, rest, 32);
    } else {
        nibbles(rest + (code_bits(kind) == 5 ? 4 : 0), 16, block.codes);
        if (code_bits(kind) == 5) fifth_bits(rest, block.codes);
    }
}

void put_lane(std::int32_t kind, const Block& block, std::int64_t lane, std::uint8_t* chunk) {
    put_half(chunk, lane, block.d);
    if (has_minimum(kind)) put_half(chunk + MINIMUM_AT, lane, block.minimum_scale);
    if (kind == Q6_K) {
        for (int i = 0; i < 16; ++i) chunk[SCALES_AT + i / 2 * 32 + lane * 2 + i % 2] = block.scales[i];
    } else if (has_super_blocks(kind)) {
        for (int i = 0; i < 4; ++i) {
            const std::uint8_t *scale = block.scales + i, *minimum = block.minimums + i;
            chunk[FIRST_AT + in_plane(i, lane)] = static_cast<std::uint8_t>(scale[0] | (scale[4] >> 4) << 6);
            chunk[SECOND_AT + in_plane(i, lane)] = static_cast<std::uint8_t>(minimum[0] | (minimum[4] >> 4) << 6);
            chunk[THIRD_AT + in_plane(i, lane)] = static_cast<std::uint8_t>((scale[4] & 15) | minimum[4] << 4);
        }
    }
    for (std::int64_t group = 0; group < block_inputs(kind) / GROUP_INPUTS; ++group) {
        put_codes(code_bits(kind), block.codes + group * 32, lane, chunk + header_bytes(kind) + group * group_bytes(kind));
    }
}

void get_lane(std::int32_t kind, const std::uint8_t* chunk, std::int64_t lane, Block& block) {
    block.d = half_at(chunk + 2 * lane);
    block.minimum_scale = has_minimum(kind) ? half_at(chunk + MINIMUM_AT + 2 * lane) : 0;
    if (kind == Q6_K) {
        for (int i = 0; i < 16; ++i) block.scales[i] = chunk[SCALES_AT + i / 2 * 32 + lane * 2 + i % 2];
    } else if (has_super_blocks(kind)) {
        std::uint8_t twelve[12];
        for (int i = 0; i < 12; ++i) twelve[i] = chunk[FIRST_AT + i / 4 * 64 + in_plane(i % 4, lane)];
        six_bit_numbers(twelve, block);
    }
    for (std::int64_t group = 0; group < block_inputs(kind) / GROUP_INPUTS; ++group) {
        get_codes(code_bits(kind), chunk + header_bytes(kind) + group * group_bytes(kind), lane, block.codes + group * 32);
    }
}

void grouped_pack(std::int32_t kind, const std::uint8_t* raw, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed) {
    const std::int64_t blocks = inputs / block_inputs(kind), bytes = block_bytes(kind), strip = strip_bytes(kind, inputs);
    auto body = [&](std::int64_t first, std::int64_t last) {
        std::memset(packed + first * strip, 0, static_cast<std::size_t>((last - first) * strip));
        Block block;
        for (std::int64_t output = first * STRIP_OUTPUTS; output < last * STRIP_OUTPUTS && output < outputs; ++output) {
            std::uint8_t* chunk = packed + output / STRIP_OUTPUTS * strip;
            for (std::int64_t i = 0; i < blocks; ++i, chunk += bytes * STRIP_OUTPUTS) {
                read_block(kind, raw + (output * blocks + i) * bytes, block);
                put_lane(kind, block, output % STRIP_OUTPUTS, chunk);
            }
        }
    };
    parallel(strips_of(outputs), 4, body);
}

void grouped_pick(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked, std::int64_t count,
                  std::uint8_t* out) {
    const std::int64_t blocks = inputs / block_inputs(kind), bytes = block_bytes(kind) * STRIP_OUTPUTS, strip = strip_bytes(kind, inputs);
    auto body = [&](std::int64_t first, std::int64_t last) {
        std::memset(out + first * strip, 0, static_cast<std::size_t>((last - first) * strip));
        Block block;
        for (std::int64_t to = first * STRIP_OUTPUTS; to < last * STRIP_OUTPUTS && to < count; ++to) {
            for (std::int64_t i = 0; i < blocks; ++i) {
                get_lane(kind, packed + picked[to] / STRIP_OUTPUTS * strip + i * bytes, picked[to] % STRIP_OUTPUTS, block);
                put_lane(kind, block, to % STRIP_OUTPUTS, out + to / STRIP_OUTPUTS * strip + i * bytes);
            }
        }
    };
    parallel(strips_of(count), 4, body);
}

void grouped_unpack_rows(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked, std::int64_t count,
                         float* out) {
    const std::int64_t blocks = inputs / block_inputs(kind), bytes = block_bytes(kind) * STRIP_OUTPUTS, strip = strip_bytes(kind, inputs);
    auto body = [&](std::int64_t first, std::int64_t last) {
        Block block;
        for (std::int64_t to = first; to < last; ++to) {
            for (std::int64_t i = 0; i < blocks; ++i) {
                get_lane(kind, packed + picked[to] / STRIP_OUTPUTS * strip + i * bytes, picked[to] % STRIP_OUTPUTS, block);
                dequantise(kind, block, out + to * inputs + i * block_inputs(kind));
            }
        }
    };
    parallel(count, 16, body);
}

}  // namespace hasten
