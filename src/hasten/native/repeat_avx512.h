// Four bytes of a row in every lane of a register, as integer products want them beside weights.
#pragma once

#include <immintrin.h>

namespace hasten {
namespace {

inline __attribute__((always_inline)) __m512i repeat_four(const void* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

}  // namespace
}  // namespace hasten
