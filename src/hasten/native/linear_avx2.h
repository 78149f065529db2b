// What the AVX2 linear kernels for int8 and for four-bit weights share.
//
// Both work pair by pair (32 outputs), a chunk of input tiles at a time: the chunk's weights are brought into the form that the products
// want, once, in the first-level cache; then all rows use them, some rows and 64 bytes of weights at a time, while the next chunk is
// fetched from memory. Sums of a chunk are added to those of the chunks before it.
#pragma once

#include <immintrin.h>

#include "linear.h"
#include "threads.h"

namespace hasten {
namespace {

#define INLINE inline __attribute__((always_inline))

const int MOST_ROWS = 6;               // rows of one block: 6 x 2 sums, two weights, a row's value and a product fill the registers
const std::int64_t PANEL_ROWS = 512;   // rows that share one preparation of the weights

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

// Eight sums of one row, outputs from `output` on, scaled and stored: the order of operations is the portable kernel's.
INLINE void finish_eight(const Linear8& call, std::int64_t row, std::int64_t output, __m256i sums) {
    const std::int64_t left = call.outputs - output, at = row * call.out_stride + output;
    if (left <= 0) return;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 8 ? static_cast<int>(left) : 8), lanes);
    const __m256 scale = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_maskload_ps(call.scale + output, mask));
    __m256 value = _mm256_mul_ps(scale, _mm256_set1_ps(call.row_scale[row]));
    if (call.bias != nullptr) value = _mm256_add_ps(value, _mm256_maskload_ps(call.bias + output, mask));
    if (call.residual != nullptr) value = _mm256_add_ps(value, _mm256_maskload_ps(call.residual + at, mask));
    _mm256_maskstore_ps(call.out + at, mask, value);
}

// Blocks of at most MOST_ROWS rows, as equal as they can be.
INLINE std::int64_t blocks_of(std::int64_t rows) { return (rows + MOST_ROWS - 1) / MOST_ROWS; }

// Walks the pairs [first, last) of a kernel: how its class Kernel is asked to prepare a chunk, multiply a block of rows and finish.
template <class Kernel>
bool run_kernel(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs), most = call.rows < PANEL_ROWS ? call.rows : PANEL_ROWS;
    const std::int64_t chunks = (tiles + Kernel::CHUNK_TILES - 1) / Kernel::CHUNK_TILES;
    auto* sums = static_cast<std::int32_t*>(scratch(SCRATCH_SUMS, static_cast<std::size_t>(most * Kernel::ROW_SUMS * 4)));
    if (sums == nullptr) return false;
    alignas(64) std::int8_t room[Kernel::CHUNK_TILES * Kernel::ROOM_BYTES];
    for (std::int64_t top = 0; top < call.rows; top += PANEL_ROWS) {
        const std::int64_t rows = call.rows - top < PANEL_ROWS ? call.rows - top : PANEL_ROWS, blocks = blocks_of(rows);
        for (std::int64_t pair = first; pair < last; ++pair) {
            for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
                const std::int64_t from = tiles * chunk / chunks, count = tiles * (chunk + 1) / chunks - from;
                const std::int8_t* weights = call.tiles + (pair * tiles + from) * Kernel::TILE_SIZE;
                Kernel::prepare(weights, count, room);
                const std::int64_t after = (chunk + 1) % chunks, next = tiles * (after + 1) / chunks - tiles * after / chunks;
                Ahead ahead(weights + count * Kernel::TILE_SIZE, next * Kernel::TILE_SIZE, blocks * Kernel::COLUMNS * count);
                for (std::int64_t block = 0; block < blocks; ++block) {
                    const std::int64_t row = rows * block / blocks, some = rows * (block + 1) / blocks - row;
                    Kernel::multiply(call, top + row, some, from, count, room, sums + row * Kernel::ROW_SUMS, chunk != 0, ahead);
                }
            }
            for (std::int64_t row = 0; row < rows; ++row) Kernel::finish(call, top + row, pair * PAIR_OUTPUTS, sums + row * Kernel::ROW_SUMS);
        }
    }
    return true;
}

}  // namespace
}  // namespace hasten
