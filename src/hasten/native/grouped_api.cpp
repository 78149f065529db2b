// The C interface of the layers over GGUF's own codes; see api.cpp for what holds at this border.
#include "calls.h"
#include "grouped.h"
#include "threads.h"

using namespace hasten;

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

bool bad_matrix(std::int32_t kind, std::int64_t outputs, std::int64_t inputs) {
    return !is_grouped(kind) || outputs < 1 || inputs < 1 || inputs > MOST_GROUPED_INPUTS || inputs % block_inputs(kind) != 0;
}

}  // namespace

EXPORT std::int64_t hst_grouped_packed_bytes(std::int32_t kind, std::int64_t outputs, std::int64_t inputs) {
    return bad_matrix(kind, outputs, inputs) ? -1 : strips_of(outputs) * strip_bytes(kind, inputs);
}

EXPORT int hst_grouped_pack(std::int32_t kind, const std::uint8_t* raw, std::int64_t outputs, std::int64_t inputs, std::uint8_t* packed) {
    if (bad_matrix(kind, outputs, inputs)) return BAD_SIZE;
    grouped_pack(kind, raw, outputs, inputs, packed);
    return OK;
}

EXPORT int hst_grouped_pick(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked,
                            std::int64_t count, std::uint8_t* out) {
    if (bad_matrix(kind, 1, inputs)) return BAD_SIZE;
    grouped_pick(kind, packed, inputs, picked, count, out);
    return OK;
}

EXPORT int hst_grouped_rows(std::int32_t kind, const std::uint8_t* packed, std::int64_t inputs, const std::int64_t* picked,
                            std::int64_t count, float* out) {
    if (bad_matrix(kind, 1, inputs)) return BAD_SIZE;
    grouped_unpack_rows(kind, packed, inputs, picked, count, out);
    return OK;
}

// Rows as hst_rows makes them, rounded in groups, times the layer's weights; bias and residual are added.
EXPORT int hst_grouped_linear(const HastenGrouped* layer, const float* x, const float* weight, float eps, std::int32_t source,
                              const float* residual, float* out, std::int64_t rows) {
    const std::int64_t inputs = layer->inputs, groups = inputs / GROUP_INPUTS;
    if (rows < 0 || source < PLAIN || source > GATE_GELU) return BAD_SIZE;
    for (std::int64_t i = 0; i < layer->count; ++i) {
        if (bad_matrix(layer->parts[i].kind, layer->parts[i].outputs, inputs)) return BAD_SIZE;
    }
    if (rows == 0) return OK;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * inputs)));
    auto* scales = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows * groups) * 12));
    if (codes == nullptr || scales == nullptr) return NO_MEMORY;
    const GroupedRows rounded = {codes, scales, scales + rows * groups, reinterpret_cast<std::int16_t*>(scales + 2 * rows * groups), rows, inputs};
    round_in_groups({x, weight, eps, static_cast<RowSource>(source), rows, inputs, 0, nullptr, 0, nullptr, nullptr}, rounded);
    grouped_linear({rounded, layer->bias, residual, out, layer->outputs}, layer->parts, layer->count);
    return OK;
}
