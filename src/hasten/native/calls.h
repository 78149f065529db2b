// Calls of the C interface that other calls are made of; see api.cpp and grouped_api.cpp, which define them.
#pragma once

#include <cstdint>

#include "attention8.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct HastenStep;
struct HastenLinear;
struct HastenGrouped;

EXPORT int hst_rows_linear(const HastenLinear* layer, const float* x, const float* weight, float eps, std::int32_t source,
                           const float* residual, float* out, std::int64_t rows);
EXPORT int hst_grouped_linear(const HastenGrouped* layer, const float* x, const float* weight, float eps, std::int32_t source,
                              const float* residual, float* out, std::int64_t rows);
EXPORT int hst_attention(const HastenStep* step, const float* qkv, const float* query_norm, const float* key_norm, const float* cosine,
                         const float* sine, void* keys, void* values, std::int64_t window, float* out);
EXPORT int hst_attention8(const HastenStep* step, const hasten::Cache8* cache, const float* qkv, const float* query_norm,
                          const float* key_norm, const float* cosine, const float* sine, std::int64_t window, float* out);
