// Work on rows of floats around the linear layers: norms, activations, rotation, rounding to int8, rotary embedding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace hasten {

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

// `room` holds inputs + 16 floats.
using RowFunction = void (*)(const RowWork& work, std::int64_t first, std::int64_t last, float* room);
using RotaryFunction = void (*)(const RotaryWork& work, std::int64_t first, std::int64_t last);

#define DECLARE(level)                                                                           \
    namespace level {                                                                            \
    void some_rows(const RowWork& work, std::int64_t first, std::int64_t last, float* room);     \
    void rotary_rows(const RotaryWork& work, std::int64_t first, std::int64_t last);             \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

// False when there is no memory.
bool make_rows(const RowWork& work);
bool rotate_and_write(const RotaryWork& work);

}  // namespace hasten
