// The portable kernel, the choice of kernel, and how strips and rows are shared among threads.
#include "grouped.h"

#include <cmath>

#include "isa.h"
#include "threads.h"

namespace hasten {
namespace {

// A chunk as the portable kernel works on it: float scales, integer scales of each group's halves, and signed codes.
struct Decoded {
    float d[STRIP_OUTPUTS], low[STRIP_OUTPUTS];
    std::int32_t scales[16][STRIP_OUTPUTS];
    float minimums[8][STRIP_OUTPUTS];
    std::int16_t codes[STRIP_OUTPUTS][256];
};

void decode(std::int32_t kind, const std::uint8_t* chunk, Decoded& out) {
    Block block;
    for (std::int64_t lane = 0; lane < STRIP_OUTPUTS; ++lane) {
        get_lane(kind, chunk, lane, block);
        out.d[lane] = half_to_float(block.d);
        out.low[lane] = has_minimum(kind) ? half_to_float(block.minimum_scale) : out.d[lane] * static_cast<float>(-zero_code(kind));
        for (int i = 0; i < block_inputs(kind); ++i) {
            const std::uint8_t code = block.codes[i];
            out.codes[lane][i] = kind == Q8_0 ? static_cast<std::int8_t>(code) : kind == Q6_K ? static_cast<std::int16_t>(code - 32) : code;
        }
        for (int half = 0; half < 16 && has_super_blocks(kind); ++half) {
            out.scales[half][lane] = kind == Q6_K ? static_cast<std::int8_t>(block.scales[half]) : block.scales[half / 2];
        }
        for (int group = 0; group < 8 && kind != Q6_K && has_super_blocks(kind); ++group) {
            out.minimums[group][lane] = static_cast<float>(block.minimums[group]);
        }
    }
}

std::int32_t product(const std::int16_t* codes, const std::int8_t* x) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += codes[i] * x[i];
    return sum;
}

// One output of one row, one chunk further; `group` is the chunk's first one.
float add_chunk(std::int32_t kind, const Decoded& chunk, std::int64_t lane, const GroupedRows& x, std::int64_t row, std::int64_t group, float sum) {
    const bool lowered = has_minimum(kind) || zero_code(kind) != 0;
    if (!has_super_blocks(kind)) {
        const std::int64_t at = x.at(row, group);
        const std::int8_t* codes = x.codes + at * GROUP_INPUTS;
        const std::int32_t dot = product(chunk.codes[lane], codes) + product(chunk.codes[lane] + 16, codes + 16);
        sum = std::fma(static_cast<float>(dot) * x.scale[at], chunk.d[lane], sum);
        return lowered ? std::fma(chunk.low[lane], x.scaled_sum[at], sum) : sum;
    }
    float part = 0.0f, low = 0.0f;
    for (int i = 0; i < 8; ++i) {
        const std::int64_t at = x.at(row, group + i);
        const std::int8_t* codes = x.codes + at * GROUP_INPUTS;
        const std::int32_t first = product(chunk.codes[lane] + i * 32, codes) * chunk.scales[2 * i][lane];
        const std::int32_t second = product(chunk.codes[lane] + i * 32 + 16, codes + 16) * chunk.scales[2 * i + 1][lane];
        part = std::fma(static_cast<float>(first + second), x.scale[at], part);
        if (lowered) low = std::fma(chunk.minimums[i][lane], x.scaled_sum[at], low);
    }
    sum = std::fma(chunk.d[lane], part, sum);
    return lowered ? std::fma(-chunk.low[lane], low, sum) : sum;
}

GroupedRange kernel_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return grouped_vnni;
    if (isa == AVX2) return grouped_avx2;
#endif
    (void)isa;
    return grouped_generic;
}

RoundFunction round_function(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::round_groups;
    if (isa == AVX2) return avx2::round_groups;
#endif
    (void)isa;
    return generic::round_groups;
}

// As many rows at a time as keep their codes in the second-level cache.
std::int64_t panel_rows(std::int64_t inputs) {
    const std::int64_t some = (std::int64_t(1) << 18) / inputs;
    return some < 8 ? 8 : some > MOST_PANEL ? MOST_PANEL : some;
}

}  // namespace

void grouped_generic(const GroupedCall& call, const GroupedPart& part, std::int64_t offset, std::int64_t first, std::int64_t last,
                     std::int64_t row, std::int64_t count) {
    const std::int64_t inputs = call.x.inputs, length = block_inputs(part.kind), bytes = block_bytes(part.kind) * STRIP_OUTPUTS;
    Decoded chunk;
    for (std::int64_t strip = first; strip < last; ++strip) {
        float sums[MOST_PANEL][STRIP_OUTPUTS] = {};
        for (std::int64_t i = 0; i < inputs / length; ++i) {
            decode(part.kind, part.packed + strip * strip_bytes(part.kind, inputs) + i * bytes, chunk);
            for (std::int64_t r = 0; r < count; ++r) {
                for (std::int64_t lane = 0; lane < STRIP_OUTPUTS; ++lane) {
                    sums[r][lane] = add_chunk(part.kind, chunk, lane, call.x, row + r, i * length / GROUP_INPUTS, sums[r][lane]);
                }
            }
        }
        for (std::int64_t r = 0; r < count; ++r) {
            for (std::int64_t lane = 0; lane < STRIP_OUTPUTS && strip * STRIP_OUTPUTS + lane < part.outputs; ++lane) {
                const std::int64_t output = offset + strip * STRIP_OUTPUTS + lane, at = (row + r) * call.outputs + output;
                float value = sums[r][lane];
                if (call.bias != nullptr) value += call.bias[output];
                if (call.residual != nullptr) value += call.residual[at];
                call.out[at] = value;
            }
        }
    }
}

void grouped_linear(const GroupedCall& call, const GroupedPart* parts, std::int64_t count) {
    const GroupedRange kernel = kernel_for(current_isa());
    const std::int64_t panel = panel_rows(call.x.inputs);
    std::int64_t strips = 0, bytes = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        strips += strips_of(parts[i].outputs);
        bytes += strips_of(parts[i].outputs) * strip_bytes(parts[i].kind, call.x.inputs);
    }
    // About 64 KiB of weights a piece: long streams, yet small enough to even out threads that are held up.
    const std::int64_t grain = bytes == 0 ? 1 : (std::int64_t(1) << 16) * strips / bytes + 1;
    for (std::int64_t row = 0; row < call.x.rows; row += panel) {
        const std::int64_t rows = call.x.rows - row < panel ? call.x.rows - row : panel;
        auto body = [&](std::int64_t first, std::int64_t last) {
            std::int64_t start = 0, offset = 0;  // of the part, in strips and in outputs
            for (std::int64_t i = 0; i < count && start < last; ++i) {
                const std::int64_t end = start + strips_of(parts[i].outputs);
                const std::int64_t from = first > start ? first : start, to = last < end ? last : end;
                if (from < to) kernel(call, parts[i], offset, from - start, to - start, row, rows);
                start = end;
                offset += parts[i].outputs;
            }
        };
        parallel(strips, grain, body);
    }
}

void grouped_strip(const GroupedCall& call, const GroupedPart& part, std::int64_t strip, std::int64_t row, std::int64_t count) {
    kernel_for(current_isa())(call, part, 0, strip, strip + 1, row, count);
}

void round_in_groups(const RowWork& work, const GroupedRows& rounded) {
    const RoundFunction function = round_function(current_isa());
    const RowShares shares = share_rows(rounded.rows, rounded.inputs);
    const std::int64_t parts = shares.parts, groups = rounded.groups();
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t part = i % parts;
            function(work, rounded, i / parts, groups * part / parts, groups * (part + 1) / parts);
        }
    };
    parallel(rounded.rows * parts, shares.grain, body);
}

}  // namespace hasten
