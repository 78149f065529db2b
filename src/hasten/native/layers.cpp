// All layers of a decoder in one call: what lies between two kernels is no Python, and a step of a small model is not bound by it.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "calls.h"
#include "rows.h"
#include "threads.h"

using namespace hasten;

// A projection: HastenLinear, or HastenGrouped where `grouped`. Field for field as in layers.py, as is what follows.
struct HastenProjection {
    const void* fields;
    std::int64_t outputs, inputs;
    std::int32_t grouped;
};

struct HastenLayer {
    HastenProjection qkv, output, gate_up, down;
    const float* attention_norm;
    const float* query_norm;           // or null
    const float* key_norm;             // or null
    const float* post_attention_norm;  // or null, both or none
    const float* mlp_norm;
    const float* post_mlp_norm;
    void* keys;
    void* values;
    const Cache8* cache;  // of an int8 pool, instead of keys and values
    std::int64_t window;
    std::int32_t activation;
};

// Cosines and sines of the step's rows, [rows][head_dim / 2]: for layers that see everything, and for those with a window.
struct HastenAngles {
    const float* cosine[2];
    const float* sine[2];
};

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

// What one call works in, all [rows][...].
struct Buffers {
    float* qkv;
    float* mixed;
    float* middle;
    float* other;  // the rows between attention and MLP, or what is normed before it is added
};

int project(const HastenProjection& layer, const float* x, const float* weight, float eps, std::int32_t source, const float* residual,
            float* out, std::int64_t rows) {
    if (layer.grouped) return hst_grouped_linear(static_cast<const HastenGrouped*>(layer.fields), x, weight, eps, source, residual, out, rows);
    return hst_rows_linear(static_cast<const HastenLinear*>(layer.fields), x, weight, eps, source, residual, out, rows);
}

int attend_rows(const HastenStep* step, const HastenLayer& layer, const HastenAngles& angles, const Buffers& room) {
    const int kind = layer.window > 0 ? 1 : 0;
    const float* cosine = angles.cosine[kind];
    const float* sine = angles.sine[kind];
    if (layer.cache != nullptr) {
        return hst_attention8(step, layer.cache, room.qkv, layer.query_norm, layer.key_norm, cosine, sine, layer.window, room.mixed);
    }
    return hst_attention(step, room.qkv, layer.query_norm, layer.key_norm, cosine, sine, layer.keys, layer.values, layer.window, room.mixed);
}

int mlp(const HastenLayer& layer, const float* x, float eps, const float* residual, const Buffers& room, float* out, std::int64_t rows) {
    std::int32_t activation = layer.activation;
    const int status = layer.gate_up.grouped ? project(layer.gate_up, x, layer.mlp_norm, eps, NORM, nullptr, room.middle, rows)
                                             : gate_up_linear(*static_cast<const HastenLinear*>(layer.gate_up.fields), x, layer.mlp_norm, eps,
                                                              &activation, room.middle, rows);
    return status != OK ? status : project(layer.down, room.middle, nullptr, 0.0f, activation, residual, out, rows);
}

// hidden += x / rms(x) * weight; x is overwritten.
int add_normed(float* x, const float* weight, float eps, float* hidden, std::int64_t rows, std::int64_t width) {
    if (!make_rows({x, weight, eps, NORM, rows, width, 0, nullptr, 0, nullptr, x})) return NO_MEMORY;
    for (std::int64_t i = 0; i < rows * width; ++i) hidden[i] += x[i];
    return OK;
}

// Rows of which something is wanted, [count] in ascending order; all of them where `count` is negative.
struct Wanted {
    const std::int64_t* rows;
    std::int64_t count;
};

// The wanted rows of x, at its beginning.
void gather(const Wanted& wanted, float* x, std::int64_t width) {
    for (std::int64_t i = 0; i < wanted.count; ++i) {
        if (wanted.rows[i] != i) std::memcpy(x + i * width, x + wanted.rows[i] * width, static_cast<std::size_t>(width) * 4);
    }
}

int run_layer(const HastenStep* step, const HastenLayer& layer, const HastenAngles& angles, float eps, const Buffers& room, float* hidden,
              std::int64_t rows, const Wanted& wanted) {
    const std::int64_t width = layer.qkv.inputs;
    int status = project(layer.qkv, hidden, layer.attention_norm, eps, NORM, nullptr, room.qkv, rows);
    if (status == OK) status = attend_rows(step, layer, angles, room);
    if (status != OK) return status;
    if (wanted.count >= 0) {
        gather(wanted, room.mixed, layer.output.inputs);
        gather(wanted, hidden, width);
        rows = wanted.count;
    }
    if (layer.post_attention_norm == nullptr) {
        status = project(layer.output, room.mixed, nullptr, 0.0f, PLAIN, hidden, room.other, rows);
        return status != OK ? status : mlp(layer, room.other, eps, room.other, room, hidden, rows);
    }
    status = project(layer.output, room.mixed, nullptr, 0.0f, PLAIN, nullptr, room.other, rows);
    if (status == OK) status = add_normed(room.other, layer.post_attention_norm, eps, hidden, rows, width);
    if (status == OK) status = mlp(layer, hidden, eps, nullptr, room, room.other, rows);
    return status != OK ? status : add_normed(room.other, layer.post_mlp_norm, eps, hidden, rows, width);
}

bool fits(const Wanted& wanted, std::int64_t rows) {
    for (std::int64_t i = 0; i < wanted.count; ++i) {
        if (wanted.rows[i] < (i == 0 ? 0 : wanted.rows[i - 1] + 1) || wanted.rows[i] >= rows) return false;
    }
    return true;
}

bool fits(const HastenLayer& layer, std::int64_t width) {
    const bool post = (layer.post_attention_norm == nullptr) == (layer.post_mlp_norm == nullptr);
    return post && layer.qkv.inputs == width && layer.output.outputs == width && layer.gate_up.inputs == width && layer.down.outputs == width &&
           layer.gate_up.outputs == 2 * layer.down.inputs && layer.activation >= GATE_SILU && layer.activation <= GATE_GELU;
}

std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

}  // namespace

// `hidden` [rows][width] goes through `count` layers and is overwritten. Of `wanted_rows`, [wanted] in ascending order, only these go
// on behind the last one's attention, and are the first rows of `hidden` then; all go on where `wanted` is negative.
EXPORT int hst_layers(const HastenStep* step, const HastenLayer* layers, std::int64_t count, const HastenAngles* angles, float eps,
                      float* hidden, std::int64_t rows, std::int64_t width, const std::int64_t* wanted_rows, std::int64_t wanted) {
    const Wanted last = {wanted_rows, wanted}, all = {nullptr, -1};
    if (rows < 0 || width < 1 || !fits(last, rows)) return BAD_SIZE;
    std::int64_t qkv = 0, mixed = 0, middle = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        if (!fits(layers[i], width)) return BAD_SIZE;
        qkv = most(qkv, layers[i].qkv.outputs);
        mixed = most(mixed, layers[i].output.inputs);
        middle = most(middle, layers[i].gate_up.outputs);
    }
    auto* memory = static_cast<float*>(scratch(SCRATCH_LAYER, static_cast<std::size_t>(rows * (qkv + mixed + middle + width)) * 4 + 4));
    if (memory == nullptr) return NO_MEMORY;
    float* behind = memory + rows * middle;  // the middle comes first: it may be written past the caches, whole lines at a time
    const Buffers room = {behind, behind + rows * qkv, memory, behind + rows * (qkv + mixed)};
    for (std::int64_t i = 0; i < count; ++i) {
        const int status = run_layer(step, layers[i], *angles, eps, room, hidden, rows, i + 1 < count ? all : last);
        if (status != OK) return status;
    }
    return OK;
}
