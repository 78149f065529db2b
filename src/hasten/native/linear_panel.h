// How linear kernels take many rows: a chunk of a pair's input tiles at a time. The first block of rows brings the chunk's weights into
// the form that the products want and leaves them in the first-level cache for the other blocks, while the next chunk is fetched from
// memory. Sums of a chunk are added to those of the chunks before it.
#pragma once

#include <immintrin.h>

#include "fetch.h"
#include "linear.h"
#include "threads.h"

namespace hasten {
namespace {

#define INLINE inline __attribute__((always_inline))

const std::int64_t PANEL_ROWS = 512;  // rows that share one preparation of the weights

// Lines of weights that are fetched while others are used: some with every tile of products, so that memory is never idle.
struct Ahead {
    const char* line;
    const char* end;
    int lines;

    // The `bytes` from `from` on, spread over `turns` calls of `fetch`.
    Ahead(const std::int8_t* from, std::int64_t bytes, std::int64_t turns)
        : line(reinterpret_cast<const char*>(from)), end(line + bytes), lines(static_cast<int>((bytes / 64 + turns - 1) / turns)) {}

    INLINE void fetch() {
        for (int i = 0; i < lines && line < end; ++i, line += 64) fetch_line(line);
    }
};

// All rows, pairs [first, last). False when there is no memory. Kernel::multiply takes a block of rows times a chunk, Kernel::finish a row's
// sums. Panels, blocks and chunks are as equal as they can be: no block of several has less than half of MOST_ROWS rows.
template <class Kernel>
bool run_kernel(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs), chunks = (tiles + Kernel::CHUNK_TILES - 1) / Kernel::CHUNK_TILES;
    const std::int64_t panels = (call.rows + PANEL_ROWS - 1) / PANEL_ROWS;
    auto* sums = static_cast<std::int32_t*>(scratch(SCRATCH_SUMS, static_cast<std::size_t>(PANEL_ROWS * Kernel::ROW_SUMS * 4)));
    if (sums == nullptr) return false;
    alignas(64) std::int8_t room[Kernel::CHUNK_TILES * Kernel::ROOM_BYTES];
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        const std::int64_t top = call.rows * panel / panels, rows = call.rows * (panel + 1) / panels - top;
        const std::int64_t blocks = (rows + Kernel::MOST_ROWS - 1) / Kernel::MOST_ROWS;
        for (std::int64_t pair = first; pair < last; ++pair) {
            for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
                const std::int64_t from = tiles * chunk / chunks, count = tiles * (chunk + 1) / chunks - from;
                const std::int8_t* weights = call.tiles + (pair * tiles + from) * Kernel::TILE_SIZE;
                const std::int64_t after = (chunk + 1) % chunks, next = tiles * (after + 1) / chunks - tiles * after / chunks;
                Ahead ahead(weights + count * Kernel::TILE_SIZE, next * Kernel::TILE_SIZE, blocks * Kernel::COLUMNS * count);
                for (std::int64_t block = 0; block < blocks; ++block) {
                    const std::int64_t row = rows * block / blocks, some = rows * (block + 1) / blocks - row;
                    Kernel::multiply(call, top + row, some, from, count, weights, room, block == 0, sums + row * Kernel::ROW_SUMS, ahead);
                }
            }
            for (std::int64_t row = 0; row < rows; ++row) Kernel::finish(call, top + row, pair * PAIR_OUTPUTS, sums + row * Kernel::ROW_SUMS);
        }
    }
    return true;
}

}  // namespace
}  // namespace hasten
