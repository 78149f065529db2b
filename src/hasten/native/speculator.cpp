// A level of a speculator in one call: what lies between its kernels is no Python, which takes as long as they do where a step of the
// target has just swept the caches.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "calls.h"
#include "rows.h"
#include "threads.h"

using namespace hasten;

// One gated layer. Field for field as in speculator.py, as is what follows.
struct HastenGatedLayer {
    const float* norm;
    const HastenLinear* gate_up;
    const HastenLinear* down;
};

struct HastenSpeculator {
    const HastenLinear* state;
    const HastenLinear* token;
    const HastenLinear* head;
    const HastenLinear* more;  // outputs behind the head's; there may be none
    const float* state_norm;
    const float* token_norm;
    const float* final_norm;
    const HastenGatedLayer* layers;
    std::int64_t count;
    float eps;
};

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

bool fits(const HastenSpeculator& network, std::int64_t width) {
    if (network.state->outputs != width || network.token->inputs != width || network.token->outputs != width) return false;
    for (std::int64_t i = 0; i < network.count; ++i) {
        const HastenGatedLayer& layer = network.layers[i];
        if (layer.gate_up->inputs != width || layer.gate_up->outputs != 2 * layer.down->inputs || layer.down->outputs != width) return false;
    }
    return network.head->inputs == width && network.more->inputs == width;
}

int normed(const HastenLinear* layer, const float* x, const float* norm, float eps, const float* residual, float* out, std::int64_t rows) {
    return hst_rows_linear(layer, x, norm, eps, NORM, residual, out, rows);
}

// `room` takes rows * width floats. Layers write to it and to `hidden` in turns, so that `hidden` is the last one's.
int follow(const HastenSpeculator& network, const float* states, const float* embedded, std::int64_t rows, float* room, float* hidden) {
    float* now = network.count % 2 == 0 ? room : hidden;
    float* next = network.count % 2 == 0 ? hidden : room;
    int status = normed(network.state, states, network.state_norm, network.eps, nullptr, now, rows);
    if (status == OK) status = normed(network.token, embedded, network.token_norm, network.eps, now, next, rows);
    for (std::int64_t i = 0; i < network.count && status == OK; ++i) {
        float* from = next;
        next = now, now = from;
        const HastenGatedLayer& layer = network.layers[i];
        status = hst_mlp(layer.gate_up, layer.down, from, layer.norm, network.eps, GATE_SILU, from, next, rows);
    }
    return status;
}

// One part of the head, to its columns of logits, whose rows lie `stride` apart.
int project(const HastenSpeculator& network, const HastenLinear* part, const float* hidden, std::int64_t rows, float* logits, std::int64_t stride) {
    if (part->outputs == 0) return OK;
    const float* norm = network.final_norm;
    if (rows == 1 || part->outputs == stride) return normed(part, hidden, norm, network.eps, nullptr, logits, rows);
    auto* room = static_cast<float*>(scratch(SCRATCH_QUERY, static_cast<std::size_t>(rows * part->outputs) * 4));
    if (room == nullptr) return NO_MEMORY;
    const int status = normed(part, hidden, norm, network.eps, nullptr, room, rows);
    const auto bytes = static_cast<std::size_t>(part->outputs) * 4;
    for (std::int64_t row = 0; row < rows; ++row) std::memcpy(logits + row * stride, room + row * part->outputs, bytes);
    return status;
}

}  // namespace

// From `states` and `embedded` tokens, [rows][width], the states there, `hidden` [rows][width], and their `logits` [rows][outputs of both
// parts of the head].
EXPORT int hst_speculator(const HastenSpeculator* network, const float* states, const float* embedded, std::int64_t rows, float* hidden,
                          float* logits) {
    const std::int64_t width = network->state->inputs;
    if (rows < 0 || network->count < 0 || width < 1 || !fits(*network, width)) return BAD_SIZE;
    if (rows == 0) return OK;
    auto* room = static_cast<float*>(scratch(SCRATCH_LAYER, static_cast<std::size_t>(rows * width) * 4));
    if (room == nullptr) return NO_MEMORY;
    int status = follow(*network, states, embedded, rows, room, hidden);
    const std::int64_t stride = network->head->outputs + network->more->outputs;
    if (status == OK) status = project(*network, network->head, hidden, rows, logits, stride);
    if (status == OK) status = project(*network, network->more, hidden, rows, logits + network->head->outputs, stride);
    return status;
}
