// The C interface. Every function returns 0, or a code of `Status`; nothing here throws across the border. Callers guarantee that
// pointers hold what the Python wrappers check: element types, contiguity, sizes.
#include <atomic>
#include <cstdint>
#include <new>

#include "attention.h"
#include "attention8.h"
#include "calls.h"
#include "isa.h"
#include "linear.h"
#include "read.h"
#include "rows.h"
#include "threads.h"

using namespace hasten;

// What all layers of one step share; filled by Python once a step. Field for field as in kernels.py.
struct HastenStep {
    const std::int32_t* starts;
    const std::int32_t* contexts;
    const std::int32_t* chains;
    const std::int32_t* tables;
    const std::int32_t* depths;
    const std::int32_t* paths;
    const std::int64_t* slots;
    std::int64_t table_stride, path_stride, segments, rows, heads, kv_heads, head_dim;
    float scale, softcap, eps;
    std::int32_t element;  // a PoolElement
};

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2, FAILED = 3 };

bool bad_linear(std::int64_t rows, std::int64_t outputs, std::int64_t inputs) {
    return rows < 0 || outputs < 1 || inputs < 1 || inputs > MOST_INPUTS;
}

bool bad_bits(std::int32_t bits) { return bits != 3 && bits != 4; }

bool bad_block(std::int64_t inputs, std::int64_t block) {
    if (block == 0 || block == 1) return false;
    return block < 0 || block > 512 || (block & (block - 1)) != 0 || inputs % block != 0;
}

bool bad_step(const HastenStep& step) {
    if (step.segments < 0 || step.rows < 0 || step.kv_heads < 1 || step.heads < step.kv_heads || step.heads % step.kv_heads != 0) return true;
    if (step.element < FLOAT32 || step.element > FLOAT16) return true;
    return step.head_dim < 16 || step.head_dim > 512 || step.head_dim % 16 != 0;
}

// What rows are made of before they are rounded; RowWork has the rest.
struct RowMaking {
    const float* x;
    const float* weight;
    float eps;
    RowSource source;
    std::int64_t rows, inputs, block;
};

int rows_linear(const HastenLinear& layer, const RowMaking& from, RowSource gate, const float* residual, float* out) {
    const bool known = from.source >= PLAIN && from.source <= GATE_GELU;
    if (bad_linear(from.rows, layer.outputs, from.inputs) || bad_block(from.inputs, from.block) || !known) return BAD_SIZE;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(from.rows * from.inputs) + 1));
    auto* row_scale = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(from.rows) * 4 + 4));
    if (codes == nullptr || row_scale == nullptr) return NO_MEMORY;
    const RowWork work = {from.x, from.weight, from.eps, from.source, from.rows, from.inputs, from.block, codes, from.inputs, row_scale, nullptr};
    if (!make_rows(work)) return NO_MEMORY;
    Linear8 call = linear_call(layer, codes, row_scale, residual, out, from.rows);
    call.gate = gate;
    return linear8(call, layer.packed) ? OK : NO_MEMORY;
}

}  // namespace

int gate_up_linear(const HastenLinear& layer, const float* x, const float* weight, float eps, std::int32_t* activation, float* out,
                   std::int64_t rows) {
    if (*activation < GATE_SILU || *activation > GATE_GELU) return BAD_SIZE;
    const bool gates = linear8_gates(rows, layer.outputs);
    const RowSource gate = gates ? static_cast<RowSource>(*activation) : PLAIN;
    if (gates) *activation = PLAIN;
    return rows_linear(layer, {x, weight, eps, NORM, rows, layer.inputs, layer.block}, gate, nullptr, out);
}

EXPORT int hst_version() { return 14; }
EXPORT int hst_best_isa() { return best_isa(); }
EXPORT int hst_isa() { return current_isa(); }
EXPORT int hst_set_isa(int level) { return set_isa(level) ? OK : BAD_SIZE; }
EXPORT int hst_threads() { return threads(); }
EXPORT int hst_set_threads(int count) {
    set_threads(count);
    return OK;
}

// Reads `bytes` with all threads and gives an exclusive or of them (of the last partial 512 bytes nothing); for measuring.
EXPORT std::int32_t hst_read(const std::int8_t* from, std::int64_t bytes, std::int32_t kind) {
    std::atomic<std::int32_t> total{0};
    const Isa isa = current_isa();
    auto body = [&](std::int64_t first, std::int64_t last) {
        const std::int64_t start = first * 512, size = (last - first) * 512;
#if defined(__x86_64__)
        if (isa >= VNNI) return void(total ^= avx512::read_memory(from + start, size, kind));
        if (isa == AVX2) return void(total ^= avx2::read_memory(from + start, size, kind));
#endif
        total ^= generic::read_memory(from + start, size, kind);
    };
    parallel(bytes / 512, 512, body);
    return total;
}

EXPORT std::int64_t hst_packed_bytes(std::int32_t bits, std::int64_t outputs, std::int64_t inputs) {
    const bool bad = (bits != 8 && bad_bits(bits)) || bad_linear(0, outputs, inputs);
    return bad ? -1 : static_cast<std::int64_t>(packed_bytes(bits, outputs, inputs));
}

EXPORT int hst_w8_pack(const std::int8_t* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed) {
    if (bad_linear(0, outputs, inputs)) return BAD_SIZE;
    w8_pack(weights, outputs, inputs, packed);
    return OK;
}

EXPORT int hst_w8_join(const std::int8_t* weights, std::int64_t first, std::int64_t count, std::int64_t inputs, std::uint8_t* packed) {
    if (first < 0 || count < 0 || bad_linear(0, first + count, inputs)) return BAD_SIZE;
    w8_join(weights, first, count, inputs, packed);
    return OK;
}

EXPORT int hst_progressive_pack(std::int32_t bits, const std::uint8_t* codes, const std::uint8_t* scales, const std::int8_t* offsets,
                                std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed) {
    if (bad_bits(bits) || bad_linear(0, outputs, inputs)) return BAD_SIZE;
    progressive_pack(bits, codes, scales, offsets, outputs, inputs, packed);
    return OK;
}

EXPORT int hst_progressive_round(std::int32_t bits, const float* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* codes,
                                 std::uint8_t* scales, std::int8_t* offsets, float* scale) {
    if (bad_bits(bits) || bad_linear(0, outputs, inputs)) return BAD_SIZE;
    progressive_round(bits, weights, outputs, inputs, codes, scales, offsets, scale);
    return OK;
}

EXPORT int hst_w8_rows(const std::uint8_t* packed, const float* scale, std::int64_t inputs, const std::int64_t* picked, std::int64_t rows,
                       float* out) {
    w8_unpack_rows(packed, scale, inputs, picked, rows, out);
    return OK;
}

EXPORT int hst_linear(const HastenLinear* layer, const std::int8_t* codes, const float* row_scale, const float* residual, float* out,
                           std::int64_t rows) {
    if (bad_linear(rows, layer->outputs, layer->inputs)) return BAD_SIZE;
    return linear8(linear_call(*layer, codes, row_scale, residual, out, rows), layer->packed) ? OK : NO_MEMORY;
}

EXPORT int hst_rows(const float* x, const float* weight, float eps, std::int32_t source, std::int64_t rows, std::int64_t inputs,
                    std::int64_t block, std::int8_t* codes, float* scale, float* out) {
    if (rows < 0 || inputs < 1 || bad_block(inputs, block) || source < PLAIN || source > GATE_GELU) return BAD_SIZE;
    const RowWork work = {x, weight, eps, static_cast<RowSource>(source), rows, inputs, block, codes, inputs, scale, out};
    return make_rows(work) ? OK : NO_MEMORY;
}

// hst_rows and hst_linear in one call.
EXPORT int hst_rows_linear(const HastenLinear* layer, const float* x, const float* weight, float eps, std::int32_t source,
                                const float* residual, float* out, std::int64_t rows) {
    return rows_linear(*layer, {x, weight, eps, static_cast<RowSource>(source), rows, layer->inputs, layer->block}, PLAIN, residual, out);
}

// The k largest outputs of hst_rows_linear without a residual; `ids` and `values` [rows][k].
EXPORT int hst_rows_linear_top(const HastenLinear* layer, const float* x, const float* weight, float eps, std::int32_t source,
                               std::int64_t rows, std::int64_t k, std::int64_t* ids, float* values) {
    const std::int64_t inputs = layer->inputs;
    if (bad_linear(rows, layer->outputs, inputs) || bad_block(inputs, layer->block) || source < PLAIN || source > NORM) return BAD_SIZE;
    if (k < 1 || k > 16 || k > layer->outputs) return BAD_SIZE;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * inputs) + 1));
    auto* row_scale = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows) * 4 + 4));
    if (codes == nullptr || row_scale == nullptr) return NO_MEMORY;
    const RowWork work = {x, weight, eps, static_cast<RowSource>(source), rows, inputs, layer->block, codes, inputs, row_scale, nullptr};
    if (!make_rows(work)) return NO_MEMORY;
    return linear8_top(linear_call(*layer, codes, row_scale, nullptr, nullptr, rows), layer->packed, k, ids, values) ? OK : NO_MEMORY;
}

// The k largest of `width` values in each of `count` rows, `stride` apart: [count][k], descending, equal ones by id; where fewer lie above
// -infinity, ids are -1 behind them. NaN is passed over.
EXPORT int hst_largest(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, std::int64_t k, std::int64_t* ids,
                       float* values) {
    if (count < 0 || stride < width || k < 1 || k > 16 || k > width) return BAD_SIZE;
    largest(rows, stride, count, width, k, ids, values);
    return OK;
}

// The same of the first `width` values of each row and of those at its `places`, [lengths[row]], which stand behind them and are told
// once each; with the sum of e^(value - the largest), [count], over those that are less than `reach` below it.
EXPORT int hst_largest_and_mass(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width,
                                const std::int64_t* const* places, const std::int64_t* lengths, std::int64_t k, float reach,
                                std::int64_t* ids, float* values, double* mass) {
    if (count < 0 || stride < width || k < 1 || k > 16 || k > width || !(reach > 0.0f)) return BAD_SIZE;
    for (std::int64_t row = 0; row < count; ++row) {
        for (std::int64_t i = 0; i < lengths[row]; ++i) {
            if (places[row][i] < width || places[row][i] >= stride) return BAD_SIZE;
        }
    }
    largest_and_mass(rows, stride, count, width, places, lengths, k, reach, ids, values, mass);
    return OK;
}

// out = down(activation(gate) * up) + residual with [gate, up] = gate_up(x / rms(x) * weight): the whole MLP. Its wide middle stays in
// memory that is kept between calls, a panel of rows at a time.
EXPORT int hst_mlp(const HastenLinear* gate_up, const HastenLinear* down, const float* x, const float* weight, float eps,
                   std::int32_t activation, const float* residual, float* out, std::int64_t rows) {
    const std::int64_t panel = 512, some = rows < panel ? rows : panel, width = gate_up->outputs;
    if (width != 2 * down->inputs) return BAD_SIZE;
    auto* middle = static_cast<float*>(scratch(SCRATCH_GATE, static_cast<std::size_t>(some * width) * 4 + 4));
    if (middle == nullptr) return NO_MEMORY;
    for (std::int64_t row = 0; row < rows; row += panel) {
        const std::int64_t count = rows - row < panel ? rows - row : panel, at = row * down->outputs;
        const float* from = x + row * gate_up->inputs;
        std::int32_t left = activation;
        int status = gate_up_linear(*gate_up, from, weight, eps, &left, middle, count);
        if (status != OK) return status;
        const float* added = residual == nullptr ? nullptr : residual + at;
        status = hst_rows_linear(down, middle, nullptr, 0.0f, left, added, out + at, count);
        if (status != OK) return status;
    }
    return OK;
}

EXPORT int hst_rope_write(const HastenStep* step, const float* qkv, const float* query_norm, const float* key_norm, const float* cosine,
                          const float* sine, void* keys, void* values, float* query) {
    if (bad_step(*step)) return BAD_SIZE;
    const RotaryWork work = {qkv,        query_norm,  key_norm,       step->eps,      cosine, sine, step->slots, step->rows,
                             step->heads, step->kv_heads, step->head_dim, query,      keys,   values, static_cast<PoolElement>(step->element)};
    rotate_and_write(work);
    return OK;
}

EXPORT int hst_paged_attention(const HastenStep* step, const float* query, const void* keys, const void* values, std::int64_t window,
                               float* out) {
    if (bad_step(*step) || window < 0) return BAD_SIZE;
    const AttentionWork work = {query,         keys,           values,      step->starts,   step->contexts,
                                step->chains,  step->tables,   step->depths, step->paths,   step->table_stride,
                                step->path_stride, step->segments, step->heads, step->kv_heads, step->head_dim,
                                window,        step->scale,    step->softcap, static_cast<PoolElement>(step->element), out, nullptr, nullptr, nullptr};
    try {
        return attend(work) ? OK : NO_MEMORY;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (...) {
        return FAILED;
    }
}

EXPORT int hst_attention(const HastenStep* step, const float* qkv, const float* query_norm, const float* key_norm, const float* cosine,
                         const float* sine, void* keys, void* values, std::int64_t window, float* out) {
    if (bad_step(*step)) return BAD_SIZE;
    const std::int64_t floats = step->rows * step->heads * step->head_dim;
    auto* query = static_cast<float*>(scratch(SCRATCH_QUERY, static_cast<std::size_t>(floats) * 4 + 4));
    if (query == nullptr) return NO_MEMORY;
    const int status = hst_rope_write(step, qkv, query_norm, key_norm, cosine, sine, keys, values, query);
    return status != OK ? status : hst_paged_attention(step, query, keys, values, window, out);
}

// hst_attention over an int8 pool; `cache` is that of one layer.
EXPORT int hst_attention8(const HastenStep* step, const Cache8* cache, const float* qkv, const float* query_norm, const float* key_norm,
                          const float* cosine, const float* sine, std::int64_t window, float* out) {
    if (bad_step(*step) || window < 0 || step->head_dim % 64 != 0 || cache->pairs < 0 || cache->pairs > step->head_dim / 2) return BAD_SIZE;
    if (cache->pairs > 0 && key_norm != nullptr) return BAD_SIZE;
    const std::int64_t queries = step->rows * step->heads;
    const std::size_t floats = static_cast<std::size_t>(queries * (1 + 2 * cache->pairs));
    auto* memory = static_cast<float*>(scratch(SCRATCH_QUERY, floats * 4 + static_cast<std::size_t>(queries * step->head_dim) + 4));
    if (memory == nullptr) return NO_MEMORY;
    const Queries8 made = {reinterpret_cast<std::int8_t*>(memory + floats), memory, memory + queries};
    const Rotary8 work = {qkv,         query_norm,    key_norm,        step->eps,      step->scale, cosine, sine, step->slots, step->rows,
                          step->heads, step->kv_heads, step->head_dim, *cache, made};
    rotate_and_write8(work);
    const AttentionWork call = {nullptr,       nullptr,        nullptr,     step->starts,   step->contexts,
                                step->chains,  step->tables,   step->depths, step->paths,   step->table_stride,
                                step->path_stride, step->segments, step->heads, step->kv_heads, step->head_dim,
                                window,        step->scale,    step->softcap, FLOAT32,      out, cache, &made, nullptr};
    try {
        return attend(call) ? OK : NO_MEMORY;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (...) {
        return FAILED;
    }
}
