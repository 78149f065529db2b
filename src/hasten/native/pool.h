// The elements of pools of keys and values.
#pragma once

#include <cstdint>

namespace hasten {

enum PoolElement : std::int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };  // as in attention.py

}  // namespace hasten
