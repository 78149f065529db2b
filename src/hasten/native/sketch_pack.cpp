// int8 weights to four bits, for a sketch: as good as one look at each group gets, because a head is sketched whenever it is loaded.
#include <cmath>
#include <cstring>

#include "calls.h"
#include "four_bits.h"
#include "threads.h"

using namespace hasten;

namespace {

enum Status { OK = 0, BAD_SIZE = 1 };

struct Fit {
    int scale, offset, error;
    std::uint8_t codes[GROUP];
};

// Codes for one scale, the offset in the middle of what there is; no code leads out of int8.
Fit fit(const float* weights, int low, int high, int scale) {
    Fit made;
    made.scale = bounded(scale, 1, MOST_SCALE);
    made.offset = bounded(static_cast<int>(std::lround(0.5f * static_cast<float>(low + high) - 7.5f * static_cast<float>(made.scale))), -128, 127);
    const float top = static_cast<float>(most_code(made.scale, made.offset)), step = static_cast<float>(made.scale);
    const float base = static_cast<float>(made.offset), factor = 1.0f / step;
    float squares[GROUP], codes[GROUP];
    for (int i = 0; i < GROUP; ++i) {
        float code = rounded((weights[i] - base) * factor);
        code = code < 0.0f ? 0.0f : code > top ? top : code;
        const float off = weights[i] - (code * step + base);
        squares[i] = off * off;
        codes[i] = code;
    }
    float total = 0.0f;  // of whole numbers below 2^24: exact in any order
    for (int i = 0; i < GROUP; ++i) total += squares[i];
    for (int i = 0; i < GROUP; ++i) made.codes[i] = static_cast<std::uint8_t>(static_cast<int>(codes[i]));
    made.error = static_cast<int>(total);
    return made;
}

// The better of two scales: one that reaches a little less than the whole range, and the next.
Fit fit_group(const float* weights) {
    float low = weights[0], high = weights[0];
    for (int i = 1; i < GROUP; ++i) {
        low = weights[i] < low ? weights[i] : low;
        high = weights[i] > high ? weights[i] : high;
    }
    const int first = static_cast<int>(low), last = static_cast<int>(high);
    const int scale = static_cast<int>(0.9f * (high - low) / MOST_CODE + 0.25f);
    const Fit tight = fit(weights, first, last, scale), wide = fit(weights, first, last, scale + 1);
    return tight.error < wide.error ? tight : wide;
}

// One output's group out of an int8 tile, and its codes into a tile of nibbles that is zero there.
void read_group(const std::int8_t* tile, float* weights) {
    for (int line = 0; line < 16; ++line) {
        for (int i = 0; i < 4; ++i) weights[line * 4 + i] = static_cast<float>(tile[line * 64 + i]);
    }
}

void write_group(const Fit& made, std::uint8_t* nibbles) {
    for (int line = 0; line < 16; ++line) {
        for (int i = 0; i < 4; ++i) {
            std::uint8_t& to = nibbles[line / 2 * 64 + i];
            to = static_cast<std::uint8_t>(to | made.codes[line * 4 + i] << (line % 2 * 4));
        }
    }
}

}  // namespace

// `packed` [outputs][inputs] of hst_w8_pack, with float `scale`s, to the tiles and sums of hst_w4_pack for the same outputs (whole pairs, or
// the last ones). `error`: the root of the mean square of what an output's weights are off by, in that block of `block` inputs (a multiple
// of 64, or less than that and any part of 64) where it is largest.
EXPORT int hst_sketch_pack(const std::int8_t* packed, const float* scale, std::int64_t outputs, std::int64_t inputs, std::int64_t block,
                           std::uint8_t* rough, std::int32_t* sums, float* error) {
    if (outputs < 1 || inputs < 1 || inputs > MOST_INPUTS || block < 1) return BAD_SIZE;
    const std::int64_t tiles = tiles_of(inputs), together = block > GROUP ? block / GROUP : 1;
    auto body = [&](std::int64_t begin, std::int64_t end) {
        std::memset(rough + begin * tiles * PAIR_BYTES_4, 0, static_cast<std::size_t>((end - begin) * tiles * PAIR_BYTES_4));
        for (std::int64_t output = begin * PAIR_OUTPUTS; output < end * PAIR_OUTPUTS; ++output) {
            const std::int64_t pair = output / PAIR_OUTPUTS, place = output % PAIR_OUTPUTS, half = place / TILE_OUTPUTS, lane = place % TILE_OUTPUTS;
            std::int64_t off = 0, most = 0;
            std::int32_t sum = 0;
            for (std::int64_t tile = 0; output < outputs && tile < tiles; ++tile) {
                const std::int64_t at = pair * tiles + tile;
                float weights[GROUP];
                read_group(packed + at * PAIR_BYTES + half * TILE_BYTES + lane * 4, weights);
                const Fit made = fit_group(weights);
                std::uint8_t* to = rough + at * PAIR_BYTES_4;
                write_group(made, to + half * NIBBLES_BYTES + lane * 4);
                to[SCALES_AT + place] = static_cast<std::uint8_t>(made.scale);
                to[OFFSETS_AT + place] = static_cast<std::uint8_t>(static_cast<std::int8_t>(made.offset));
                off = tile % together == 0 ? made.error : off + made.error;
                most = off > most ? off : most;
                for (int i = 0; i < GROUP; ++i) sum += made.codes[i] * made.scale + made.offset;
            }
            sums[output] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) * 128u);
            if (output < outputs) error[output] = scale[output] * std::sqrt(static_cast<float>(most) / static_cast<float>(together * GROUP));
        }
    };
    parallel(pairs_of(outputs), 4, body);
    return OK;
}
