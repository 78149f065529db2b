// Rounding float weights to few bits in two steps: a float scale for each output, and in its int8 range an integer scale and offset
// for each group of inputs (QoQ, 2405.04532, section 4.1; here the second step fits the floats, not the rounded int8).
#include <cmath>

#include "few_bits.h"
#include "linear.h"
#include "threads.h"

namespace hasten {
namespace {

struct Fit {
    int scale = 1, offset = 0;
    float error = INFINITY;
};

// Squared error of a scale and offset; `mean` becomes the mean of what is left. A code may not lead out of int8.
float error_of(int bits, const float* target, int count, int scale, int offset, float* mean) {
    const float top = static_cast<float>(most_code(bits, scale, offset)), step = static_cast<float>(scale);
    const float base = static_cast<float>(offset), factor = 1.0f / step;
    float squares[GROUP], rest[GROUP];
    for (int i = 0; i < GROUP; ++i) {
        float code = rounded((target[i] - base) * factor);
        code = code < 0.0f ? 0.0f : code > top ? top : code;
        rest[i] = target[i] - (code * step + base);
        squares[i] = rest[i] * rest[i];
    }
    float total = 0.0f, sum = 0.0f;
    for (int i = 0; i < count; ++i) total += squares[i], sum += rest[i];
    *mean = sum / static_cast<float>(count);
    return total;
}

// Scales from the whole range of the group down to 70 % of it (clipping a few weights may serve the others), offsets by their means.
Fit fit_group(int bits, const float* target, int count) {
    float low = target[0], high = target[0], mean = 0.0f;
    for (int i = 1; i < count; ++i) {
        low = target[i] < low ? target[i] : low;
        high = target[i] > high ? target[i] : high;
    }
    Fit best;
    int previous = 0;
    for (int tenths = 21; tenths >= 14; --tenths) {
        const float share = static_cast<float>(tenths) / 20.0f;
        const int steps = largest_code(bits);
        const int scale = bounded(static_cast<int>(std::lround((high - low) * share / static_cast<float>(steps))), 1, largest_scale(bits));
        if (scale == previous) continue;
        previous = scale;
        int offset = static_cast<int>(std::lround((low + high) / 2 - 0.5f * static_cast<float>(steps * scale)));
        for (int round = 0; round < 3; ++round) {
            offset = bounded(offset, -128, 127);
            const float error = error_of(bits, target, count, scale, offset, &mean);
            if (error < best.error) best = {scale, offset, error};
            const int move = static_cast<int>(std::lround(mean));
            if (move == 0) break;
            offset += move;
        }
    }
    return best;
}

void round_output(int bits, const float* weights, std::int64_t inputs, std::uint8_t* codes, std::uint8_t* scales, std::int8_t* offsets,
                  float* scale) {
    float limit = 0.0f;
    for (std::int64_t i = 0; i < inputs; ++i) limit = std::fabs(weights[i]) > limit ? std::fabs(weights[i]) : limit;
    const float factor = limit > 1e-30f ? 127.0f / limit : 0.0f;
    double along = 0.0, length = 0.0;
    for (std::int64_t first = 0; first < inputs; first += GROUP) {
        const int count = inputs - first < GROUP ? static_cast<int>(inputs - first) : GROUP;
        float target[GROUP] = {};
        for (int i = 0; i < count; ++i) target[i] = weights[first + i] * factor;
        const Fit fit = fit_group(bits, target, count);
        scales[first / GROUP] = static_cast<std::uint8_t>(fit.scale);
        offsets[first / GROUP] = static_cast<std::int8_t>(fit.offset);
        const int most = most_code(bits, fit.scale, fit.offset);
        for (int i = 0; i < count; ++i) {
            const float position = rounded((target[i] - static_cast<float>(fit.offset)) / static_cast<float>(fit.scale));
            const int code = bounded(static_cast<int>(position), 0, most);
            codes[first + i] = static_cast<std::uint8_t>(code);
            const double weight = code * fit.scale + fit.offset;
            along += weight * weights[first + i];
            length += weight * weight;
        }
    }
    // The float scale that serves the rounded weights best, in least squares.
    *scale = length > 0.0 && along > 0.0 ? static_cast<float>(along / length) : 1e-30f;
}

}  // namespace

void progressive_round(int bits, const float* weights, std::int64_t outputs, std::int64_t inputs, std::uint8_t* codes,
                       std::uint8_t* scales, std::int8_t* offsets, float* scale) {
    const std::int64_t groups = groups_of(inputs);
    auto body = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t output = first; output < last; ++output) {
            const std::int64_t at = output * inputs, group = output * groups;
            round_output(bits, weights + at, inputs, codes + at, scales + group, offsets + group, scale + output);
        }
    };
    parallel(outputs, 8, body);
}

}  // namespace hasten
