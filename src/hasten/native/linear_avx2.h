// What the AVX2 linear kernels for int8 and for four-bit weights share.
//
// A few rows walk a pair's weights (32 outputs) in the order in which they lie. More rows take a chunk of input tiles at a time: the
// first block of rows brings the chunk's weights into the form that the products want and leaves them in the first-level cache for the
// other blocks, while the next chunk is fetched from memory. Sums of a chunk are added to those of the chunks before it.
#pragma once

#include <immintrin.h>

#include "linear.h"
#include "threads.h"

namespace hasten {
namespace {

#define INLINE inline __attribute__((always_inline))

const std::int64_t PANEL_ROWS = 512;   // rows that share one preparation of the weights
const std::int64_t AHEAD_BYTES = 2048;   // how far the weights of few rows are fetched before use

INLINE __m256i load32(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
INLINE void store32(void* to, __m256i value) { _mm256_store_si256(static_cast<__m256i*>(to), value); }

INLINE __m256i repeat_int(const void* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

// The compiler may not look through this: it would regroup sums until they no longer fit the registers.
INLINE void keep(__m256i& value) { __asm__("" : "+x"(value)); }

// Lines of weights that are fetched while others are used: some with every tile of products, so that memory is never idle.
struct Ahead {
    const char* line;
    const char* end;
    int lines;

    // The `bytes` from `from` on, spread over `turns` calls of `fetch`.
    Ahead(const std::int8_t* from, std::int64_t bytes, std::int64_t turns)
        : line(reinterpret_cast<const char*>(from)), end(line + bytes), lines(static_cast<int>((bytes / 64 + turns) / turns)) {}

    INLINE void fetch() {
        for (int i = 0; i < lines && line < end; ++i, line += 64) _mm_prefetch(line, _MM_HINT_T0);
    }
};

// What comes AHEAD_BYTES behind a kilobyte that is used now.
INLINE void fetch_kilobyte(const std::int8_t* from) {
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD_BYTES + line * 64), _MM_HINT_NTA);
}

// Floats that exist are loaded and stored as they are; masks, which are slow to store, serve the last outputs only.
struct Whole {
    INLINE __m256 load(const float* from) const { return _mm256_loadu_ps(from); }
    INLINE void store(float* to, __m256 value) const { _mm256_storeu_ps(to, value); }
};
struct Partly {
    __m256i mask;
    INLINE __m256 load(const float* from) const { return _mm256_maskload_ps(from, mask); }
    INLINE void store(float* to, __m256 value) const { _mm256_maskstore_ps(to, mask, value); }
};

template <class Lanes>
INLINE void scale_and_store(const Linear8& call, std::int64_t row, std::int64_t output, __m256i sums, Lanes lanes) {
    const std::int64_t at = row * call.out_stride + output;
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), lanes.load(call.scale + output));
    __m256 value = _mm256_mul_ps(scaled, _mm256_set1_ps(call.row_scale[row]));
    if (call.bias != nullptr) value = _mm256_add_ps(value, lanes.load(call.bias + output));
    if (call.residual != nullptr) value = _mm256_add_ps(value, lanes.load(call.residual + at));
    lanes.store(call.out + at, value);
}

// Eight sums of one row, outputs from `output` on, scaled and stored: the order of operations is the portable kernel's.
INLINE void finish_eight(const Linear8& call, std::int64_t row, std::int64_t output, __m256i sums) {
    const std::int64_t left = call.outputs - output;
    if (left >= 8) return scale_and_store(call, row, output, sums, Whole{});
    if (left <= 0) return;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    scale_and_store(call, row, output, sums, Partly{_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), lanes)});
}

// More than a few rows, pairs [first, last). Kernel::multiply takes a block of rows times a chunk, Kernel::finish a row's sums. Panels,
// blocks and chunks are as equal as they can be: no block has less than half of MOST_ROWS rows.
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
