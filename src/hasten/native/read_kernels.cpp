// Reading memory and nothing else: the floor that a linear layer of few rows is measured against.
#include "lanes.h"
#include "read.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

// Two streams in each step, so that no sum waits for another. DISTANCE 0 leaves prefetching to the processor.
template <int DISTANCE>
std::int32_t read(const std::int8_t* from, std::int64_t bytes) {
    IntPart sums[8] = {};
    for (std::int64_t at = 0; at + 512 <= bytes; at += 512) {
#pragma GCC unroll 8
        for (int line = 0; line < 8; ++line) {
            if (DISTANCE > 0) __builtin_prefetch(from + at + DISTANCE + line * 64, 0, 3);
#pragma GCC unroll 4
            for (int part = 0; part < 64 / (WIDTH * 4); ++part) {
                sums[line] ^= *reinterpret_cast<const LooseIntPart*>(from + at + line * 64 + part * WIDTH * 4);
            }
        }
    }
    std::int32_t total = 0;
    for (auto& each : sums)
        for (int lane = 0; lane < WIDTH; ++lane) total ^= each[lane];
    return total;
}

}  // namespace

std::int32_t read_memory(const std::int8_t* from, std::int64_t bytes, int kind) {
    if (kind == 1) return read<2048>(from, bytes);
    if (kind == 2) return read<4096>(from, bytes);
    if (kind == 3) return read<8192>(from, bytes);
    return read<0>(from, bytes);
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
