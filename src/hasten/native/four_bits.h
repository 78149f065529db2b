// What both ways of rounding to four bits (progressive.cpp, sketch_pack_kernels.cpp) share: the grid of linear.h's integer groups.
#pragma once

namespace hasten {
namespace {

const int GROUP = 64, MOST_CODE = 15, MOST_SCALE = 17;

inline float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

inline int bounded(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// The largest code that leads not out of int8.
inline int most_code(int scale, int offset) {
    const int room = (127 - offset) / scale;
    return room < MOST_CODE ? room : MOST_CODE;
}

}  // namespace
}  // namespace hasten
