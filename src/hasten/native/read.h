// Reading memory and nothing else.
#pragma once

#include <cstdint>

namespace hasten {

const int READ_KINDS = 4;  // without prefetching, and 2, 4 and 8 KiB ahead

namespace generic {
std::int32_t read_memory(const std::int8_t* from, std::int64_t bytes, int kind);
}
namespace avx2 {
std::int32_t read_memory(const std::int8_t* from, std::int64_t bytes, int kind);
}
namespace avx512 {
std::int32_t read_memory(const std::int8_t* from, std::int64_t bytes, int kind);
}

}  // namespace hasten
