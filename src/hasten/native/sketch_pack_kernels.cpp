// int8 weights to four bits, for a sketch, at one level: as good as one look at each group gets, because a head is sketched whenever it is
// loaded. All of it is exact or rounded the same way everywhere, so every level makes the same bytes.
#include <cmath>
#include <cstring>

#include "few_bits.h"
#include "linear.h"
#include "sketch.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

#define INLINE inline __attribute__((always_inline))

const int BITS = 4;  // of a sketch

struct Fit {
    int scale, offset, error;
    std::uint8_t codes[GROUP];
};

// Codes for one scale, the offset in the middle of what there is; no code leads out of int8.
INLINE Fit fit(const std::int8_t* weights, int low, int high, int scale) {
    Fit made;
    made.scale = bounded(scale, 1, largest_scale(BITS));
    made.offset = bounded(static_cast<int>(std::lround(0.5f * static_cast<float>(low + high) - 7.5f * static_cast<float>(made.scale))), -128, 127);
    const int top = most_code(BITS, made.scale, made.offset);
    const float factor = 1.0f / static_cast<float>(made.scale);
    int error = 0;
    for (int i = 0; i < GROUP; ++i) {
        const int moved = weights[i] - made.offset;
        int code = static_cast<int>(rounded(static_cast<float>(moved) * factor));
        code = code < 0 ? 0 : code > top ? top : code;
        const int off = moved - code * made.scale;
        error += off * off;
        made.codes[i] = static_cast<std::uint8_t>(code);
    }
    made.error = error;
    return made;
}

// The better of two scales: one that reaches a little less than the whole range, and the next.
INLINE Fit fit_group(const std::int8_t* weights) {
    int low = weights[0], high = weights[0];
    for (int i = 1; i < GROUP; ++i) {
        low = weights[i] < low ? weights[i] : low;
        high = weights[i] > high ? weights[i] : high;
    }
    const int scale = static_cast<int>(0.9f * static_cast<float>(high - low) / largest_code(BITS) + 0.25f);
    const Fit tight = fit(weights, low, high, scale), wide = fit(weights, low, high, scale + 1);
    return tight.error < wide.error ? tight : wide;
}

// One output's group out of an int8 tile, and its codes into a tile of nibbles.
INLINE void read_group(const std::int8_t* tile, std::int8_t* weights) {
    for (int line = 0; line < GROUP / 4; ++line) std::memcpy(weights + line * 4, tile + line * 64, 4);
}

INLINE void write_group(const Fit& made, std::uint8_t* nibbles) {
    for (int line = 0; line < GROUP / 8; ++line) {
        std::uint32_t low, high;
        std::memcpy(&low, made.codes + line * 8, 4);
        std::memcpy(&high, made.codes + line * 8 + 4, 4);
        low |= high << 4;
        std::memcpy(nibbles + line * 64, &low, 4);
    }
}

}  // namespace

void sketch_pairs(const SketchWork& work, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(work.inputs), together = work.block > GROUP ? work.block / GROUP : 1;
    std::memset(work.rough + first * tiles * pair_bytes(BITS), 0, static_cast<std::size_t>((last - first) * tiles * pair_bytes(BITS)));
    for (std::int64_t output = first * PAIR_OUTPUTS; output < last * PAIR_OUTPUTS; ++output) {
        const std::int64_t pair = output / PAIR_OUTPUTS, place = output % PAIR_OUTPUTS, half = place / TILE_OUTPUTS, lane = place % TILE_OUTPUTS;
        std::int64_t off = 0, most = 0;
        std::int32_t sum = 0;
        for (std::int64_t group = 0; output < work.outputs && group < tiles * TILE_GROUPS; ++group) {
            const std::int64_t at = pair * tiles + group / TILE_GROUPS, in_tile = group % TILE_GROUPS;
            std::int8_t weights[GROUP];
            read_group(work.packed + at * PAIR_BYTES + half * TILE_BYTES + in_tile * GROUP * TILE_OUTPUTS + lane * 4, weights);
            const Fit made = fit_group(weights);
            std::uint8_t* to = work.rough + at * pair_bytes(BITS);
            write_group(made, to + half * tile_bytes(BITS) + in_tile * 64 * BITS + lane * 4);
            to[scales_at(BITS, in_tile) + place] = static_cast<std::uint8_t>(made.scale);
            to[offsets_at(BITS, in_tile) + place] = static_cast<std::uint8_t>(static_cast<std::int8_t>(made.offset));
            off = group % together == 0 ? made.error : off + made.error;
            most = off > most ? off : most;
            std::int32_t codes = 0;
            for (int i = 0; i < GROUP; ++i) codes += made.codes[i];
            sum += codes * made.scale + GROUP * made.offset;
        }
        work.sums[output] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) * 128u);
        if (output < work.outputs) work.error[output] = work.scale[output] * std::sqrt(static_cast<float>(most) / static_cast<float>(together * GROUP));
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
