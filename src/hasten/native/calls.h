// Calls of the C interface that other calls are made of; see api.cpp and grouped_api.cpp, which define them.
#pragma once

#include <cstdint>

#include "attention8.h"
#include "grouped.h"
#include "linear.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct HastenStep;

// One layer's weights, fixed when it is made. Field for field as in kernels.py.
struct HastenLinear {
    const std::uint8_t* packed;
    const float* scale;
    const float* bias;  // or null
    std::int64_t outputs, inputs, block;
    std::int32_t bits;
};

// One layer's weights in GGUF's codes, fixed when it is made. Field for field as in grouped.py.
struct HastenGrouped {
    const hasten::GroupedPart* parts;
    const float* bias;  // or null
    std::int64_t count, outputs, inputs;
};

// The layer applied to int8 rows, for `linear8`.
inline hasten::Linear8 linear_call(const HastenLinear& layer, const std::int8_t* codes, const float* row_scale, const float* residual,
                                   float* out, std::int64_t rows) {
    hasten::Linear8 call = {};
    call.x = codes;
    call.row_scale = row_scale;
    call.scale = layer.scale;
    call.bias = layer.bias;
    call.residual = residual;
    call.out = out;
    call.rows = rows;
    call.outputs = layer.outputs;
    call.inputs = layer.inputs;
    call.bits = layer.bits;
    return call;
}

// The first half of an MLP, [gate, up] of rows that are normed; or, where linear8 takes a gate, what comes of these: then `activation`,
// which the second half has to apply, becomes PLAIN.
int gate_up_linear(const HastenLinear& layer, const float* x, const float* weight, float eps, std::int32_t* activation, float* out,
                   std::int64_t rows);

EXPORT int hst_rows_linear(const HastenLinear* layer, const float* x, const float* weight, float eps, std::int32_t source,
                           const float* residual, float* out, std::int64_t rows);
EXPORT int hst_mlp(const HastenLinear* gate_up, const HastenLinear* down, const float* x, const float* weight, float eps,
                   std::int32_t activation, const float* residual, float* out, std::int64_t rows);
EXPORT int hst_grouped_linear(const HastenGrouped* layer, const float* x, const float* weight, float eps, std::int32_t source,
                              const float* residual, float* out, std::int64_t rows);
EXPORT int hst_attention(const HastenStep* step, const float* qkv, const float* query_norm, const float* key_norm, const float* cosine,
                         const float* sine, void* keys, void* values, std::int64_t window, float* out);
EXPORT int hst_attention8(const HastenStep* step, const hasten::Cache8* cache, const float* qkv, const float* query_norm,
                          const float* key_norm, const float* cosine, const float* sine, std::int64_t window, float* out);
