// What all ways of rounding to few bits (progressive_round.cpp, feedback_kernels.cpp, sketch_pack_kernels.cpp) share: the grid of
// linear.h's integer groups.
#pragma once

#include "linear.h"

namespace hasten {
namespace {

const int GROUP = static_cast<int>(CODE_GROUP);

constexpr int largest_code(int bits) { return (1 << bits) - 1; }
constexpr int largest_scale(int bits) { return 255 / largest_code(bits); }  // code * scale fits a byte

inline float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

inline int bounded(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// The largest code that leads not out of int8.
inline int most_code(int bits, int scale, int offset) {
    const int room = (127 - offset) / scale;
    return room < largest_code(bits) ? room : largest_code(bits);
}

}  // namespace
}  // namespace hasten
