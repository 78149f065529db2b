// Rounding a group of inputs to few bits for inputs that go together: sixteen outputs at a time, one a lane. What each function
// minimises is written with H, the mean of x x^T over the inputs of the group.
#pragma once

#include <cstdint>

#include "linear.h"

namespace hasten {

// Fit an integer scale (1 to that where a code times it fills a byte) and offset and round with feedback: with H = U diag(cost) U^T, U a unit upper triangle, the error is
// sum_j cost_j (e_j + sum_{i<j} e_i U_ij)^2, and each code makes its own term least (LDLQ: 2307.13304, section 3.1, which is GPTQ).
struct GroupFit {
    int bits;
    const float* weights;     // [outputs][32] in units of int8, of which the first `count` are used
    const float* targets;     // [outputs][32]: the weights, and what earlier groups' errors ask of them
    const float* transposed;  // [32][32]: U_ij at [j][i]
    const float* cost;        // [32]
    std::int64_t outputs, count;
    bool started;             // `scale` and `offset` hold where to search from
    float* codes;             // [outputs][32]
    float* values;            // [outputs][32]: code * scale + offset
    float* scale;             // [outputs]
    float* offset;            // [outputs]
    float* error;             // [outputs]
};

// Coordinate descent on the codes of a group with its scale and offset as they are (QuantEase, 2309.01885, section 3).
struct GroupDescent {
    int bits;
    const float* moments;  // [32][32]: H
    const float* slopes;   // [outputs][32]: half the error's fall for each unit of each value
    const float* scale;    // [outputs]
    const float* offset;   // [outputs]
    std::int64_t outputs, count, passes;
    float* codes;   // [outputs][32], changed
    float* values;  // [outputs][32], changed
};

#define DECLARE(level)                                                                      \
    namespace level {                                                                       \
    void fit_outputs(const GroupFit& work, std::int64_t first, std::int64_t last);          \
    void descend_outputs(const GroupDescent& work, std::int64_t first, std::int64_t last);  \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

void fit_group(const GroupFit& work);
void descend_group(const GroupDescent& work);

}  // namespace hasten
