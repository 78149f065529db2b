// Attention over a pool of int8 keys and values: every product of many terms is an exact integer sum, so a row's bits depend neither on
// other rows nor, where keys have no bias, on the instruction set.
//
// A key is stored as R(p) (k - b), rotated in Hadamard blocks and rounded with one scale a position and head: b is that part of the
// projection's bias (the largest few pairs of dimensions) that would otherwise take up most of int8's range (Qwen 2). What it adds to
// a score, q . R(p) b, is a sum of cosines and sines of the position, taken in float. Values are rounded in the same way. Weights times
// value scales are rounded to 15 bits for each row and split: what one multiply-add of 16-bit factors takes.
//
// Keys: [blocks][kv_heads][head_dim / 4][64][4]; values: [blocks][kv_heads][16][head_dim][4] (64 positions in fours). Both are layouts
// of AMX B tiles, and feed VNNI. Scales: bf16 [blocks][kv_heads][64].
#pragma once

#include "attention.h"

namespace hasten {

const std::int64_t MOST_PAIRS = 256, QUERIES8 = 16;

struct Cache8 {
    std::int8_t* keys;
    std::int8_t* values;
    std::uint16_t* key_scale;
    std::uint16_t* value_scale;
    const float* key_bias;       // [kv_heads][head_dim], zero but for the chosen pairs; or null with pairs = 0
    const std::int32_t* chosen;  // [kv_heads][pairs] pairs of dimensions (i, i + head_dim / 2)
    const float* cosine;         // [head_dim / 2][positions]
    const float* sine;
    std::int64_t pairs, positions;
};

// Queries made for one call.
struct Queries8 {
    std::int8_t* codes;  // [rows][heads][head_dim]
    float* scale;        // [rows][heads], times the attention scale
    float* turns;        // [rows][heads][2 * pairs]: factors of cosine and sine
};

struct Rotary8 {
    const float* qkv;
    const float* query_norm;
    const float* key_norm;
    float eps, scale;
    const float* cosine;  // [rows][head_dim / 2]
    const float* sine;
    const std::int64_t* slots;
    std::int64_t rows, heads, kv_heads, head_dim;
    Cache8 cache;
    Queries8 queries;
};

// Exact products of at most QUERIES8 queries with tiles of 64 positions.
struct Products8 {
    // out[q][64 * tile + key], lines `stride` apart, = query . key.
    void (*scores)(const std::int8_t* queries, std::int64_t count, std::int64_t dim, const std::int8_t* const* tiles, std::int64_t some,
                   std::int32_t* out, std::int64_t stride);
    // 256 * out[0][16][dim] + out[1][16][dim] are the sums of weights (high and low bytes in lines `stride` apart; below 2^15, so that
    // the sums over a split fit 32 bits) times values.
    void (*mix)(const std::uint8_t* high, const std::uint8_t* low, std::int64_t stride, std::int64_t count, std::int64_t dim,
                const std::int8_t* const* tiles, std::int64_t some, std::int32_t* out);
};

#define DECLARE(level)                                                                                                                \
    namespace level {                                                                                                                 \
    extern const Products8 products8;                                                                                                 \
    void rotary_rows8(const Rotary8& work, std::int64_t first, std::int64_t last);                                                    \
    void attend_split8(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room);    \
    void finish_unit8(const AttentionWork& work, const AttentionUnit& unit, AttentionPart part);                                      \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE
extern const Products8 products8_amx;

std::int64_t attention_room8(std::int64_t head_dim, std::int64_t rows);
void rotate_and_write8(const Rotary8& work);

}  // namespace hasten
