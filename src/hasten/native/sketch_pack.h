// int8 weights to the four bits of a sketch.
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

#define DECLARE(level)                                                                \
    namespace level {                                                                 \
    void sketch_pairs(const SketchWork& work, std::int64_t first, std::int64_t last); \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

}  // namespace hasten
