// A head in three steps. Its weights in four bits, the sketch, give every output roughly. Of each row those that are largest by that are
// computed from the weights proper, with the bits that these give; then all others that may be as large. What is left keeps its rough value,
// which lies below.
//
// How far a rough value is off: the sum over inputs of (error of a weight) * x. Rows are rotated, so that within a block of the rotation
// any of its values is as likely as any other: the sum is normal, with a deviation of at most |x| times the root of the errors' mean
// square in the block where that is largest. `error` is a multiple of that; native/sketch.py says how many deviations, and the odds.
//
// Where a row's token is drawn by chance, the output with the largest value / temperature + noise has to be exact too.
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "calls.h"
#include "noise.h"
#include "rows.h"
#include "sketch.h"
#include "threads.h"

using namespace hasten;

// Field for field as in sketch.py.
struct HastenSketch {
    const HastenLinear* rough;     // four bits, without a bias
    const HastenLinear* exact;     // or null where `grouped`
    const HastenGrouped* grouped;  // of one part
    const float* error;            // [outputs] how far a rough output may be off for a row of length 1
    float rounding;                // squared length, in units of a row's scale, that rounding the rows adds to what is off
    std::int64_t choosable;        // outputs from here on are never chosen
};

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

const std::int64_t PIECE = 8192;
const int MOST_KEPT = 64;

struct Kernels {
    void (*largest)(const Rough& rough, std::int64_t kept, Place* places);
    Score (*best_drawn)(const Rough& rough, const Draw& draw);
    void (*mark_large)(const Rough& rough, float length, float limit, std::int64_t width, std::uint8_t* marks);
    void (*mark_drawn)(const Rough& rough, const Draw& draw, float length, double limit, std::int64_t width, std::uint8_t* marks);
};

Kernels kernels_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return {avx512::largest_rough, avx512::best_drawn, avx512::mark_large, avx512::mark_drawn};
    if (isa == AVX2) return {avx2::largest_rough, avx2::best_drawn, avx2::mark_large, avx2::mark_drawn};
#endif
    (void)isa;
    return {generic::largest_rough, generic::best_drawn, generic::mark_large, generic::mark_drawn};
}

// What all rows share: outputs, rough ones at first, and for each row its length, how many of its largest outputs have to be exact, and how
// its token is drawn.
struct Looked {
    const HastenSketch& head;
    const Kernels kernels;
    const float* out;      // [rows][outputs]
    const float* lengths;  // [rows]
    const std::int64_t* keep;
    const Draw* draws;  // [rows], or null
    std::int64_t rows, outputs, choosable, width, blocks;

    std::int64_t pieces() const { return (choosable + PIECE - 1) / PIECE; }

    bool drawn(std::int64_t row) const { return draws != nullptr && draws[row].temperature > 0.0; }

    Rough piece(std::int64_t row, std::int64_t number) const {
        const std::int64_t first = number * PIECE, left = choosable - first;
        return {out + row * outputs + first, head.error + first, first, left < PIECE ? left : PIECE};
    }
};

// A row's largest outputs by their rough values, and the one that is drawn by these; -1 where there is none.
struct Leaders {
    std::int64_t large[MOST_KEPT], drawn;
};

// What has to be reached to be among a row's `keep` largest, and to be drawn.
struct Limit {
    double score;
    float value;
};

Leaders merged(const Looked& looked, std::int64_t row, const Place* places, const Score* scores) {
    const std::int64_t kept = looked.keep[row], pieces = looked.pieces();
    Place best[MOST_KEPT];
    Score drawn = {-INFINITY, -1};
    for (std::int64_t i = 0; i < kept; ++i) best[i] = {-INFINITY, -1};
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const Place* some = places + (row * pieces + piece) * MOST_KEPT;
        for (std::int64_t i = 0; i < kept && some[i].value > best[kept - 1].value; ++i) insert(some[i], kept, best);
        if (scores[row * pieces + piece].value > drawn.value) drawn = scores[row * pieces + piece];
    }
    Leaders leaders = {{}, drawn.output};
    for (std::int64_t i = 0; i < kept; ++i) leaders.large[i] = best[i].output;
    return leaders;
}

// The leaders of all rows, and `marks` [rows][blocks] on their blocks. False when there is no memory.
bool find_leaders(const Looked& looked, Leaders* leaders, std::uint8_t* marks) {
    const std::int64_t pieces = looked.pieces(), units = looked.rows * pieces;
    auto* scores = static_cast<Score*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(units) * (sizeof(Score) + MOST_KEPT * sizeof(Place))));
    if (scores == nullptr) return false;
    auto* places = reinterpret_cast<Place*>(scores + units);
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = unit / pieces;
            const Rough piece = looked.piece(row, unit % pieces);
            looked.kernels.largest(piece, looked.keep[row], places + unit * MOST_KEPT);
            scores[unit] = looked.drawn(row) ? looked.kernels.best_drawn(piece, looked.draws[row]) : Score{-INFINITY, -1};
        }
    };
    parallel(units, 2, body);
    std::memset(marks, 0, static_cast<std::size_t>(looked.rows * looked.blocks));
    for (std::int64_t row = 0; row < looked.rows; ++row) {
        leaders[row] = merged(looked, row, places, scores);
        std::uint8_t* marked = marks + row * looked.blocks;
        for (std::int64_t i = 0; i < looked.keep[row]; ++i) {
            if (leaders[row].large[i] >= 0) marked[leaders[row].large[i] / looked.width] = 1;
        }
        if (leaders[row].drawn >= 0) marked[leaders[row].drawn / looked.width] = 1;
    }
    return true;
}

// What a row's leaders, which are exact by now, reach: nothing where there are too few of them, or one is NaN.
Limit limit_of(const Looked& looked, std::int64_t row, const Leaders& leaders) {
    const float* out = looked.out + row * looked.outputs;
    Limit limit = {-INFINITY, INFINITY};
    for (std::int64_t i = 0; i < looked.keep[row]; ++i) {
        const float value = leaders.large[i] < 0 ? -INFINITY : out[leaders.large[i]];
        if (!(value >= limit.value)) limit.value = value == value ? value : -INFINITY;
    }
    if (leaders.drawn < 0) return limit;
    const Draw& draw = looked.draws[row];
    const double noise = Noise::of(Noise(draw.seed, draw.position).bits(leaders.drawn));
    limit.score = static_cast<double>(out[leaders.drawn]) / draw.temperature + noise - Noise::SLACK;
    return limit;
}

// Marks the blocks that hold an output which may reach its row's limit, but for those `done`.
void mark(const Looked& looked, const Leaders* leaders, const std::uint8_t* done, std::uint8_t* marks) {
    const std::int64_t pieces = looked.pieces(), all = looked.rows * looked.blocks;
    std::vector<Limit> limits;
    for (std::int64_t row = 0; row < looked.rows; ++row) limits.push_back(limit_of(looked, row, leaders[row]));
    std::memset(marks, 0, static_cast<std::size_t>(all));
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = unit / pieces;
            const Limit& limit = limits[static_cast<std::size_t>(row)];
            const Rough piece = looked.piece(row, unit % pieces);
            std::uint8_t* marked = marks + row * looked.blocks;
            looked.kernels.mark_large(piece, looked.lengths[row], limit.value, looked.width, marked);
            if (looked.drawn(row)) looked.kernels.mark_drawn(piece, looked.draws[row], looked.lengths[row], limit.score, looked.width, marked);
        }
    };
    parallel(looked.rows * pieces, 2, body);
    for (std::int64_t i = 0; i < all; ++i) marks[i] = marks[i] != 0 && done[i] == 0;
}

// The head whole, where so much of it is wanted that finding and reading it piece by piece would take longer.
const std::int64_t MOST_MARKED = 4;  // one block in so many

enum Computed { FAILED, SOME, WHOLE };

// Blocks that some row has marked, ascending.
std::vector<std::int64_t> wanted_blocks(const std::uint8_t* marks, std::int64_t rows, std::int64_t blocks) {
    std::vector<std::int64_t> found;
    for (std::int64_t block = 0; block < blocks; ++block) {
        std::uint8_t any = 0;
        for (std::int64_t row = 0; row < rows; ++row) any = static_cast<std::uint8_t>(any | marks[row * blocks + block]);
        if (any != 0) found.push_back(block);
    }
    return found;
}

// The wanted blocks, for all rows: what a block costs is the reading of its weights.
Computed compute_wanted(const HastenLinear& exact, const std::int8_t* codes, const float* row_scale, std::int64_t rows,
                        const std::vector<std::int64_t>& wanted, std::int64_t blocks, float* out) {
    Linear8 call = linear_call(exact, codes, row_scale, nullptr, out, rows);
    const auto count = static_cast<std::int64_t>(wanted.size());
    if (count * MOST_MARKED > blocks) return linear8(call, exact.packed) ? WHOLE : FAILED;
    if (!linear8_prepare(call, exact.packed)) return FAILED;
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = wanted[static_cast<std::size_t>(i)] * PAIR_OUTPUTS, left = exact.outputs - first;
            if (!linear8_piece(call, first, left < PAIR_OUTPUTS ? left : PAIR_OUTPUTS, out + first, exact.outputs)) enough = false;
        }
    };
    parallel(count, 1, body);
    return enough ? SOME : FAILED;
}

// The same over GGUF's codes; `work` makes the rows. A strip is computed for the rows that marked it, or for all where most did.
Computed compute_wanted(const HastenGrouped& exact, const RowWork& work, const std::uint8_t* marks,
                        const std::vector<std::int64_t>& wanted, std::int64_t blocks, float* out) {
    const std::int64_t rows = work.rows, groups = exact.inputs / GROUP_INPUTS;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * exact.inputs)));
    auto* scales = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows * groups) * 12));
    if (codes == nullptr || scales == nullptr) return FAILED;
    const GroupedRows rounded = {codes, scales, scales + rows * groups, reinterpret_cast<std::int16_t*>(scales + 2 * rows * groups), rows, exact.inputs};
    round_in_groups(work, rounded);
    const GroupedCall call = {rounded, nullptr, nullptr, out, exact.outputs};
    const auto count = static_cast<std::int64_t>(wanted.size());
    if (count * MOST_MARKED > blocks) {
        grouped_linear(call, exact.parts, 1);
        return WHOLE;
    }
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t strip = wanted[static_cast<std::size_t>(i)];
            std::int64_t marked = 0;
            for (std::int64_t row = 0; row < rows; ++row) marked += marks[row * blocks + strip];
            if (2 * marked >= rows && rows <= MOST_PANEL) {
                grouped_strip(call, exact.parts[0], strip, 0, rows);
                continue;
            }
            for (std::int64_t row = 0; row < rows; ++row) {
                if (marks[row * blocks + strip] != 0) grouped_strip(call, exact.parts[0], strip, row, 1);
            }
        }
    };
    parallel(count, 1, body);
    return SOME;
}

bool fits(const HastenSketch& head) {
    const HastenLinear& rough = *head.rough;
    if ((head.exact == nullptr) == (head.grouped == nullptr) || rough.bias != nullptr || rough.bits != 4) return false;
    if ((head.exact != nullptr ? head.exact->bias : head.grouped->bias) != nullptr) return false;
    const std::int64_t outputs = head.exact != nullptr ? head.exact->outputs : head.grouped->outputs;
    const std::int64_t inputs = head.exact != nullptr ? head.exact->inputs : head.grouped->inputs;
    if (head.grouped != nullptr && head.grouped->count != 1) return false;
    if (head.exact != nullptr && head.exact->block != rough.block) return false;
    return outputs == rough.outputs && inputs == rough.inputs && head.choosable >= 1 && head.choosable <= outputs;
}

// Lengths of the rounded rows, with what rounding may have taken.
void measure(const std::int8_t* codes, const float* row_scale, float rounding, std::int64_t rows, std::int64_t inputs, float* lengths) {
    for (std::int64_t row = 0; row < rows; ++row) {
        std::int32_t squares = 0;
        for (std::int64_t i = 0; i < inputs; ++i) squares += std::int32_t(codes[row * inputs + i]) * codes[row * inputs + i];
        lengths[row] = row_scale[row] * std::sqrt(static_cast<float>(squares) + rounding);
    }
}

int run_sketched(const HastenSketch& head, const float* x, const float* weight, float eps, const std::int64_t* keep, const Draw* draws,
                 float* out, std::int64_t rows) {
    const HastenLinear& rough = *head.rough;
    const std::int64_t inputs = rough.inputs, outputs = rough.outputs, width = head.exact != nullptr ? PAIR_OUTPUTS : STRIP_OUTPUTS;
    const std::int64_t blocks = (outputs + width - 1) / width;
    const auto each = sizeof(Leaders) + sizeof(float) + 2 * static_cast<std::size_t>(blocks);
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * inputs)));
    auto* row_scale = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows) * 4));
    auto* leaders = static_cast<Leaders*>(scratch(SCRATCH_HEAD, static_cast<std::size_t>(rows) * each));
    if (codes == nullptr || row_scale == nullptr || leaders == nullptr) return NO_MEMORY;
    const RowSource source = weight == nullptr ? PLAIN : NORM;
    if (!make_rows({x, weight, eps, source, rows, inputs, rough.block, codes, inputs, row_scale, nullptr})) return NO_MEMORY;
    if (!linear8(linear_call(rough, codes, row_scale, nullptr, out, rows), rough.packed)) return NO_MEMORY;
    auto* lengths = reinterpret_cast<float*>(leaders + rows);
    auto* leading = reinterpret_cast<std::uint8_t*>(lengths + rows);
    auto* marks = leading + rows * blocks;
    measure(codes, row_scale, head.rounding, rows, inputs, lengths);
    const RowWork plain = {x, weight, eps, source, rows, inputs, 0, nullptr, 0, nullptr, nullptr};
    auto compute = [&](const std::uint8_t* marked) {
        const std::vector<std::int64_t> wanted = wanted_blocks(marked, rows, blocks);
        if (wanted.empty()) return SOME;
        if (head.exact != nullptr) return compute_wanted(*head.exact, codes, row_scale, rows, wanted, blocks, out);
        return compute_wanted(*head.grouped, plain, marked, wanted, blocks, out);
    };
    const Looked looked = {head, kernels_for(current_isa()), out, lengths, keep, draws, rows, outputs, head.choosable, width, blocks};
    if (!find_leaders(looked, leaders, leading)) return NO_MEMORY;
    Computed computed = compute(leading);
    if (computed == SOME) {
        mark(looked, leaders, leading, marks);
        computed = compute(marks);
    }
    return computed == FAILED ? NO_MEMORY : OK;
}

}  // namespace

// The head applied to x / rms(x) * weight, or to x where there is no weight: [rows][outputs]. Of each row the `keep` (1 to 64) largest of
// the choosable outputs are exact, and all others below them; so is the one that `draws` (or null) draws, with the largest score.
EXPORT int hst_sketched_head(const HastenSketch* head, const float* x, const float* weight, float eps, const std::int64_t* keep,
                             const Draw* draws, float* out, std::int64_t rows) {
    if (rows < 0 || !fits(*head)) return BAD_SIZE;
    for (std::int64_t row = 0; row < rows; ++row) {
        if (keep[row] < 1 || keep[row] > MOST_KEPT || keep[row] > head->choosable) return BAD_SIZE;
    }
    if (rows == 0) return OK;
    try {
        return run_sketched(*head, x, weight, eps, keep, draws, out, rows);
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}
