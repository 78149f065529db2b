// The row kernels at one level; see lanes.h for why every level gives the same bits.
#include "row_parts.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

// Sixteen floats as the pool's elements.
INLINE void put(float* to, const float* from) { store(to, load(from)); }
INLINE void put(Half* to, const float* from) { store_halves(to, load(from)); }
INLINE void put(std::uint16_t* to, const float* from) {
    for (int i = 0; i < LANES; ++i) to[i] = to_bf16(from[i]);
}

template <class Element>
void write_head(const RotaryWork& work, std::int64_t head, std::int64_t first, std::int64_t last) {
    const std::int64_t dim = work.head_dim, width = (work.heads + 2 * work.kv_heads) * dim;
    float turned[512];
    for (std::int64_t row = first; row < last; ++row) {
        const float* key = work.qkv + row * width + (work.heads + head) * dim;
        const float* value = key + work.kv_heads * dim;
        turn_head(key, work.key_norm, work.eps, work.cosine + row * (dim / 2), work.sine + row * (dim / 2), dim, turned);
        const std::int64_t tile = work.slots[row] / 64 * work.kv_heads + head, offset = work.slots[row] % 64;
        Element* key_to = static_cast<Element*>(work.keys) + tile * dim * 64 + offset;
        Element* value_to = static_cast<Element*>(work.values) + (tile * 64 + offset) * dim;
        for (std::int64_t i = 0; i < dim; i += LANES) {
            Element some[LANES];
            put(some, turned + i);
            for (std::int64_t j = 0; j < LANES; ++j) key_to[(i + j) * 64] = some[j];
            put(value_to + i, value + i);
        }
    }
}

}  // namespace

void make_part(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, float* made, Extent* extent) {
    make_inputs(work, row, factor_of(work, row), first, last, made + first);
    if (work.block > 1) transform(made + first, last - first, work.block);
    if (work.codes != nullptr) *extent = extent_of(made + first, last - first);
}

void put_part(const RowWork& work, std::int64_t row, std::int64_t first, std::int64_t last, const float* made, const Extent* extents,
              std::int64_t parts) {
    const float length = work.block > 1 ? 1.0f / std::sqrt(static_cast<float>(work.block)) : 1.0f;
    if (work.codes == nullptr) {
        for (std::int64_t i = first; work.block > 1 && i < last; ++i) work.out[row * work.inputs + i] = made[i] * length;
        return;
    }
    Extent whole = extents[0];
    for (std::int64_t i = 1; i < parts; ++i) whole = {whole.top < extents[i].top ? extents[i].top : whole.top, whole.nothing + extents[i].nothing};
    std::int8_t* codes = work.codes + row * work.code_stride;
    const float scale = round_inputs(made + first, last - first, whole, length, codes + first);
    if (first == 0) work.scale[row] = scale;
    if (last == work.inputs) {
        for (std::int64_t i = last; i < work.code_stride; ++i) codes[i] = 0;
    }
}

void turn_queries(const RotaryWork& work, std::int64_t first, std::int64_t last) {
    const std::int64_t dim = work.head_dim, half = dim / 2, width = (work.heads + 2 * work.kv_heads) * dim;
    for (std::int64_t row = first; row < last; ++row) {
        for (std::int64_t head = 0; head < work.heads; ++head) {
            const float* x = work.qkv + row * width + head * dim;
            float* to = work.query + (row * work.heads + head) * dim;
            turn_head(x, work.query_norm, work.eps, work.cosine + row * half, work.sine + row * half, dim, to);
        }
    }
}

void write_keys(const RotaryWork& work, std::int64_t head, std::int64_t first, std::int64_t last) {
    if (work.element == FLOAT16) return write_head<Half>(work, head, first, last);
    return work.element == BFLOAT16 ? write_head<std::uint16_t>(work, head, first, last) : write_head<float>(work, head, first, last);
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
