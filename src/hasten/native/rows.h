// Work on rows of floats around the linear layers: norms, activations, rotation, rounding to int8, rotary embedding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace hasten {

const std::int64_t LANES_OF_ROWS = 16;  // as in lanes.h

enum RowSource : std::int32_t { PLAIN = 0, NORM = 1, GATE_SILU = 2, GATE_GELU = 3 };

// Rows of `inputs` floats made from `x`: as they stand; x / rms(x) * weight; or activation(gate) * up of [gate, up] (2 * inputs).
struct RowWork {
    const float* x;
    const float* weight;  // [inputs] for NORM, else null
    float eps;
    RowSource source;
    std::int64_t rows, inputs;
    std::int64_t block;   // Hadamard block: 0 or 1 for none, else a power of two from 2 to 512 that divides inputs
    std::int8_t* codes;   // [rows][code_stride] or null
    std::int64_t code_stride;
    float* scale;         // [rows] with codes
    float* out;           // [rows][inputs] instead of codes; may be x for PLAIN and NORM
};

struct RotaryWork {
    const float* qkv;         // [rows][(heads + 2 * kv_heads) * head_dim]
    const float* query_norm;  // [head_dim] or null
    const float* key_norm;    // [head_dim] or null
    float eps;
    const float* cosine;      // [rows][head_dim / 2]
    const float* sine;
    const std::int64_t* slots;  // [rows], block * 64 + offset
    std::int64_t rows, heads, kv_heads, head_dim;
    float* query;             // [rows][heads * head_dim]
    void* keys;               // [blocks][kv_heads][head_dim][64]
    void* values;             // [blocks][kv_heads][64][head_dim]
    PoolElement element;      // of the pool
};

// What rounding needs to know of some inputs of a row: the largest magnitude, and whether any is NaN or infinite (then `nothing` is NaN).
struct Extent {
    float top, nothing;
};

// Inputs [first, last) of a row, rotated but for their length, at made[first] and on; their extent where there are codes. Both ends are
// multiples of the block and of 16, or the row's end.
using MakeFunction = void (*)(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, float* made, Extent* extent);
// What was made of a row as codes, under the scale that the extents of all its parts give; or at `out`.
using PutFunction = void (*)(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, const float* made,
                             const Extent* extents, std::int64_t parts);
// Of rows [first, last) the queries, turned; the keys, turned, and values of one head, in their places.
using TurnFunction = void (*)(const RotaryWork& work, std::int64_t first, std::int64_t last);
using WriteFunction = void (*)(const RotaryWork& work, std::int64_t head, std::int64_t first, std::int64_t last);

#define DECLARE(level)                                                                                                               \
    namespace level {                                                                                                                \
    void make_part(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, float* made, Extent* extent);       \
    void put_part(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, const float* made, const Extent* extents, \
                  std::int64_t parts);                                                                                               \
    void turn_queries(const RotaryWork& work, std::int64_t first, std::int64_t last);                                                \
    void write_keys(const RotaryWork& work, std::int64_t head, std::int64_t first, std::int64_t last);                               \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

// How rows are shared among threads: each in so many parts, where there are fewer rows than even the threads out, and so many parts at a time.
struct RowShares {
    std::int64_t parts, grain;
};

RowShares share_rows(std::int64_t rows, std::int64_t inputs);

// False when there is no memory.
bool make_rows(const RowWork& work);
void rotate_and_write(const RotaryWork& work);

}  // namespace hasten
