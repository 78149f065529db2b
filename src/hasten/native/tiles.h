// The shapes of AMX tiles.
#pragma once

#include <cstdint>

#include <immintrin.h>
#if defined(HASTEN_EMULATED_TILES)
#include "emulated_tiles.h"
#endif

namespace hasten {
namespace {

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t column_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// Tiles 0 to 7 of 64 bytes by so many rows.
inline void configure_tiles(const std::uint8_t (&rows)[8]) {
    TileConfiguration wanted;
    for (int tile = 0; tile < 8; ++tile) {
        wanted.column_bytes[tile] = 64;
        wanted.rows[tile] = rows[tile];
    }
    __asm__ volatile("" : : "r"(&wanted) : "memory");  // GCC takes only the first bytes to be read by what follows
    _tile_loadconfig(&wanted);
}

}  // namespace
}  // namespace hasten
