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
void rotary(const RotaryWork& work, std::int64_t first, std::int64_t last) {
    const std::int64_t dim = work.head_dim, width = (work.heads + 2 * work.kv_heads) * dim;
    auto* keys = static_cast<Element*>(work.keys);
    auto* values = static_cast<Element*>(work.values);
    float turned[512];
    for (std::int64_t row = first; row < last; ++row) {
        const float* x = work.qkv + row * width;
        const float* cosine = work.cosine + row * (dim / 2);
        const float* sine = work.sine + row * (dim / 2);
        for (std::int64_t head = 0; head < work.heads; ++head) {
            turn_head(x + head * dim, work.query_norm, work.eps, cosine, sine, dim, work.query + (row * work.heads + head) * dim);
        }
        const std::int64_t block = work.slots[row] / 64, offset = work.slots[row] % 64;
        for (std::int64_t head = 0; head < work.kv_heads; ++head) {
            turn_head(x + (work.heads + head) * dim, work.key_norm, work.eps, cosine, sine, dim, turned);
            const float* value = x + (work.heads + work.kv_heads + head) * dim;
            Element* key_to = keys + (block * work.kv_heads + head) * dim * 64 + offset;
            Element* value_to = values + ((block * work.kv_heads + head) * 64 + offset) * dim;
            for (std::int64_t i = 0; i < dim; i += LANES) {
                Element some[LANES];
                put(some, turned + i);
                for (std::int64_t j = 0; j < LANES; ++j) key_to[(i + j) * 64] = some[j];
                put(value_to + i, value + i);
            }
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

void rotary_rows(const RotaryWork& work, std::int64_t first, std::int64_t last) {
    if (work.element == FLOAT16) return rotary<Half>(work, first, last);
    return work.element == BFLOAT16 ? rotary<std::uint16_t>(work, first, last) : rotary<float>(work, first, last);
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
