// The same products with AMX: 16 queries x 16 keys (or dimensions) x 64 terms an instruction.
#include "attention8.h"

#if defined(__x86_64__)
#include "tiles.h"

namespace hasten {
namespace {

// Tiles: 0-3 sums, 4-5 queries or weights, 6-7 keys or values.
void configure(std::int64_t count) {
    const auto some = static_cast<std::uint8_t>(count);
    configure_tiles({some, some, some, some, some, some, 16, 16});
}

void scores(const std::int8_t* queries, std::int64_t count, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some,
            std::int32_t* out, std::int64_t stride) {
    configure(count);
    const std::size_t line = static_cast<std::size_t>(stride) * 4;
    for (std::int64_t tile = 0; tile < some; ++tile, out += 64) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::int64_t d = 0; d < dim; d += 64) {
            const std::int8_t* keys = tiles[tile] + d * 64;
            _tile_loadd(4, queries + d, static_cast<std::size_t>(dim));
            _tile_loadd(6, keys, 256);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, keys + 64, 256);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(6, keys + 128, 256);
            _tile_dpbssd(2, 4, 6);
            _tile_loadd(7, keys + 192, 256);
            _tile_dpbssd(3, 4, 7);
        }
        _tile_stored(0, out, line);
        _tile_stored(1, out + 16, line);
        _tile_stored(2, out + 32, line);
        _tile_stored(3, out + 48, line);
    }
    _tile_release();
}

void mix(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t count, std::int64_t dim,
         const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out) {
    configure(count);
    const auto line = static_cast<std::size_t>(stride), width = static_cast<std::size_t>(dim) * 4;
    for (std::int64_t d = 0; d < dim; d += 32) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::int64_t tile = 0; tile < some; ++tile) {
            _tile_loadd(4, high + tile * 64, line);
            _tile_loadd(5, low + tile * 64, line);
            _tile_loadd(6, tiles[tile] + d * 4, width);
            _tile_loadd(7, tiles[tile] + d * 4 + 64, width);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(0, out + d, width);
        _tile_stored(1, out + d + 16, width);
        _tile_stored(2, out + QUERIES8 * dim + d, width);
        _tile_stored(3, out + QUERIES8 * dim + d + 16, width);
    }
    _tile_release();
}

}  // namespace

const Products8 products8_amx = {scores, mix};

}  // namespace hasten
#endif
