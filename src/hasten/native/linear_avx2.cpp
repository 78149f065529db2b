// AVX2: bytes widened to 16 bits, multiplied and added in pairs; nothing can saturate.
#include "linear.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace hasten {
namespace {

const int ROWS = 2;  // rows that share one widening of the weights

inline __m256i widen(const std::int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __m256i repeat_four(const std::int8_t* from) {
    int four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
}

// Sums of one row and one output tile; lanes of `part[i]` are two partial sums of each of four outputs.
inline void store_sums(const __m256i* part, std::int32_t* sums) {
    for (int i = 0; i < 2; ++i) {
        const __m256i added = _mm256_hadd_epi32(part[2 * i], part[2 * i + 1]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * i), _mm256_permute4x64_epi64(added, 0xd8));
    }
}

template <int COUNT>
void tile_sums(const Linear8& call, const std::int8_t* weights, std::int64_t row, std::int64_t tiles, std::int32_t (*sums)[16]) {
    __m256i part[COUNT][4];
    for (auto& each : part)
        for (auto& lane : each) lane = _mm256_setzero_si256();
    const std::int8_t* x = call.x + row * call.stride;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        for (int group = 0; group < 16; ++group) {
            const std::int8_t* line = weights + tile * PAIR_BYTES + group * 64;
            __m256i four[COUNT];
            for (int r = 0; r < COUNT; ++r) four[r] = repeat_four(x + r * call.stride + tile * TILE_INPUTS + group * 4);
            for (int i = 0; i < 4; ++i) {
                const __m256i wide = widen(line + 16 * i);
                for (int r = 0; r < COUNT; ++r) part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(wide, four[r]));
            }
        }
    }
    for (int r = 0; r < COUNT; ++r) store_sums(part[r], sums[r]);
}

inline void finish(const Linear8& call, std::int64_t row, std::int64_t output, const std::int32_t* sums) {
    const std::int64_t left = call.outputs - output;
    const std::int64_t count = left < TILE_OUTPUTS ? left : TILE_OUTPUTS;
    for (std::int64_t lane = 0; lane < count; ++lane) {
        const std::int64_t at = row * call.out_stride + output + lane;
        float value = static_cast<float>(sums[lane]) * call.scale[output + lane] * call.row_scale[row];
        if (call.bias != nullptr) value += call.bias[output + lane];
        if (call.residual != nullptr) value += call.residual[at];
        call.out[at] = value;
    }
}

}  // namespace

bool linear8_avx2(const Linear8& call, std::int64_t first, std::int64_t last) {
    const std::int64_t tiles = tiles_of(call.inputs);
    std::int32_t sums[ROWS][16];
    for (std::int64_t block = first * 2; block < last * 2; ++block) {
        const std::int8_t* weights = call.tiles + (block / 2) * tiles * PAIR_BYTES + block % 2 * TILE_BYTES;
        std::int64_t row = 0;
        for (; row + ROWS <= call.rows; row += ROWS) {
            tile_sums<ROWS>(call, weights, row, tiles, sums);
            for (int r = 0; r < ROWS; ++r) finish(call, row + r, block * TILE_OUTPUTS, sums[r]);
        }
        for (; row < call.rows; ++row) {
            tile_sums<1>(call, weights, row, tiles, sums);
            finish(call, row, block * TILE_OUTPUTS, sums[0]);
        }
    }
    return true;
}

}  // namespace hasten
#endif
