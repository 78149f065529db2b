// What sketches are made by, and how rough outputs are looked through.
#pragma once

#include <cstdint>

#include "isa.h"

namespace hasten {

// `packed` [outputs][inputs] of hst_w8_pack, with float `scale`s, to the tiles and sums of hst_w4_pack for the same outputs (whole pairs, or
// the last ones). `error`: the root of the mean square of what an output's weights are off by, in that block of `block` inputs (a multiple
// of 64, or less than that and any part of 64) where it is largest.
struct SketchWork {
    const std::int8_t* packed;
    const float* scale;  // [outputs]
    std::int64_t outputs, inputs, block;
    std::uint8_t* rough;
    std::int32_t* sums;  // [outputs], to a whole pair
    float* error;        // [outputs]
};

const std::int64_t LOOK = 16;  // outputs that are looked at together; divides the blocks that they are computed in

// Rough outputs of a row from output `first` on, which LOOK divides, and how far off each may be for a row of length 1.
struct Rough {
    const float* value;
    const float* error;
    std::int64_t first, count;
};

// How a row's token is drawn (sampling/choose.py); at temperature 0 it is not. Field for field as in sketch.py.
struct Draw {
    double temperature;
    std::uint64_t seed;
    std::int64_t position;
};

struct Place {
    float value;
    std::int64_t output;
};

namespace {

// Into `kept` places, descending, of which the last one is smaller.
inline void insert(const Place& place, std::int64_t kept, Place* places) {
    std::int64_t at = kept - 1;
    for (; at > 0 && place.value > places[at - 1].value; --at) places[at] = places[at - 1];
    places[at] = place;
}

}  // namespace

struct Score {
    double value;  // output / temperature + noise
    std::int64_t output;
};

// look_through: the `kept` largest, descending, output -1 where there are fewer; and of each block of `width` outputs the most that one may
// be for a row of this `length`. best_drawn: the best score of the rough values that is above `least`, output -1 where there is none; nearly_best: all that are
// at most `slack` below it, their outputs ascending, and how many, -1 where there are more than `most`, with the noise of `ids` where they
// are given. mark_drawn sets marks[output / width] for outputs of a row of this `length` whose score may reach a limit.
#define DECLARE(level)                                                                                                                 \
    namespace level {                                                                                                                  \
    void sketch_pairs(const SketchWork& work, std::int64_t first, std::int64_t last);                                                  \
    void look_through(const Rough& rough, float length, std::int64_t width, std::int64_t kept, Place* places, float* bounds);          \
    Score best_drawn(const Rough& rough, const Draw& draw, double least);                                                              \
    std::int64_t nearly_best(const Rough& rough, const Draw& draw, const std::int64_t* ids, double slack, std::int64_t most, Score* found); \
    void mark_drawn(const Rough& rough, const Draw& draw, float length, double limit, std::int64_t width, std::uint8_t* marks);        \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

}  // namespace hasten
