// AMX tiles in plain C++: kernels that are written for them run, and are checked, on processors that have none. Slow, and only built for
// that (see build.py). What a processor would refuse ends the process.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hasten {
namespace emulated_tiles {

struct Tile {
    int rows = 0, bytes = 0;  // of a row
    std::uint8_t at[16][64] = {};
};

inline thread_local Tile tiles[8];

inline void need(bool lawful, const char* what) {
    if (lawful) return;
    std::fprintf(stderr, "unlawful use of tiles: %s\n", what);
    std::abort();
}

inline Tile& configured(int tile) {
    need(tile >= 0 && tile < 8 && tiles[tile].rows > 0 && tiles[tile].bytes > 0, "a tile without a shape");
    return tiles[tile];
}

// The 64 bytes of a configuration: palette, start row, 14 reserved; 16 bit bytes of a row by tile; from 48 on the rows by tile.
inline void configure(const void* from) {
    const auto* wanted = static_cast<const std::uint8_t*>(from);
    need(wanted[0] == 1, "no palette 1");
    for (int i = 1; i < 16; ++i) need(wanted[i] == 0, "reserved bytes");
    for (int tile = 0; tile < 8; ++tile) {
        std::uint16_t bytes;
        std::memcpy(&bytes, wanted + 16 + 2 * tile, 2);
        need(bytes <= 64 && wanted[48 + tile] <= 16, "a shape beyond 16 rows of 64 bytes");
        tiles[tile] = Tile();
        tiles[tile].rows = wanted[48 + tile];
        tiles[tile].bytes = bytes;
    }
}

inline void release() {
    for (Tile& tile : tiles) tile = Tile();
}

inline void zero(int tile) { std::memset(configured(tile).at, 0, sizeof(tiles[tile].at)); }

inline void load(int tile, const void* from, std::size_t stride) {
    zero(tile);
    for (int row = 0; row < tiles[tile].rows; ++row) {
        std::memcpy(tiles[tile].at[row], static_cast<const std::uint8_t*>(from) + static_cast<std::size_t>(row) * stride, static_cast<std::size_t>(tiles[tile].bytes));
    }
}

inline void store(int tile, void* to, std::size_t stride) {
    const Tile& source = configured(tile);
    for (int row = 0; row < source.rows; ++row) {
        std::memcpy(static_cast<std::uint8_t*>(to) + static_cast<std::size_t>(row) * stride, source.at[row], static_cast<std::size_t>(source.bytes));
    }
}

// sums[m][n] += the products of four bytes of left[m][k] and of right[k][n], for all k. Sanitizers, under which this runs, have nothing to
// look for here, and would take minutes.
template <class Left>
__attribute__((optimize("O3"), no_sanitize("address", "undefined"))) void multiply(int sums, int left, int right) {
    Tile& to = configured(sums);
    const Tile &a = configured(left), &b = configured(right);
    need(sums != left && sums != right && left != right, "one tile twice");
    need(a.rows == to.rows && b.bytes == to.bytes && a.bytes == 4 * b.rows && to.bytes % 4 == 0, "shapes that do not fit");
    for (int m = 0; m < to.rows; ++m) {
        std::uint32_t total[16] = {};  // wraps, as the processor's does
        for (int k = 0; k < b.rows; ++k) {
            const std::int8_t* other = reinterpret_cast<const std::int8_t*>(b.at[k]);
            for (int n = 0; n < 16; ++n) {
                std::int32_t sum = 0;
                for (int i = 0; i < 4; ++i) sum += std::int32_t(static_cast<Left>(a.at[m][4 * k + i])) * other[4 * n + i];
                total[n] += static_cast<std::uint32_t>(sum);
            }
        }
        for (int n = 0; n < to.bytes / 4; ++n) {
            std::uint32_t sum;
            std::memcpy(&sum, to.at[m] + 4 * n, 4);
            sum += total[n];
            std::memcpy(to.at[m] + 4 * n, &sum, 4);
        }
    }
}

inline float of_bf16(const std::uint8_t* from) {
    std::uint16_t upper;
    std::memcpy(&upper, from, 2);
    const std::uint32_t bits = static_cast<std::uint32_t>(upper) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// sums[m][n] += the products of two bf16 of left[m][k] and of right[k][n], first ones and second ones apart. The processor's sums are not
// rounded quite so, and it takes the smallest numbers for zero.
__attribute__((optimize("O3"), no_sanitize("address", "undefined"))) inline void multiply_bf16(int sums, int left, int right) {
    Tile& to = configured(sums);
    const Tile &a = configured(left), &b = configured(right);
    need(sums != left && sums != right && left != right, "one tile twice");
    need(a.rows == to.rows && b.bytes == to.bytes && a.bytes == 4 * b.rows && to.bytes % 4 == 0, "shapes that do not fit");
    for (int m = 0; m < to.rows; ++m) {
        for (int n = 0; n < to.bytes / 4; ++n) {
            float first = 0.0f, second = 0.0f, sum;
            for (int k = 0; k < b.rows; ++k) {
                first += of_bf16(a.at[m] + 4 * k) * of_bf16(b.at[k] + 4 * n);
                second += of_bf16(a.at[m] + 4 * k + 2) * of_bf16(b.at[k] + 4 * n + 2);
            }
            std::memcpy(&sum, to.at[m] + 4 * n, 4);
            sum += first + second;
            std::memcpy(to.at[m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace emulated_tiles
}  // namespace hasten

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) hasten::emulated_tiles::configure(from)
#define _tile_release() hasten::emulated_tiles::release()
#define _tile_zero(tile) hasten::emulated_tiles::zero(tile)
#define _tile_loadd(tile, from, stride) hasten::emulated_tiles::load(tile, from, static_cast<std::size_t>(stride))
#define _tile_stored(tile, to, stride) hasten::emulated_tiles::store(tile, to, static_cast<std::size_t>(stride))
#define _tile_dpbssd(sums, left, right) hasten::emulated_tiles::multiply<std::int8_t>(sums, left, right)
#define _tile_dpbusd(sums, left, right) hasten::emulated_tiles::multiply<std::uint8_t>(sums, left, right)
#define _tile_dpbf16ps(sums, left, right) hasten::emulated_tiles::multiply_bf16(sums, left, right)
