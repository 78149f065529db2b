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

const std::int64_t MOST_PIECE = 2048, LEAST_PIECE = 1024, PIECE_FLOATS = 1 << 16;  // of outputs that are looked through while cached
const int MOST_KEPT = 64;

struct Kernels {
    void (*look)(const Rough& rough, float length, std::int64_t width, std::int64_t kept, Place* places, float* bounds);
    Score (*best_drawn)(const Rough& rough, const Draw& draw, double least);
    void (*mark_drawn)(const Rough& rough, const Draw& draw, float length, double limit, std::int64_t width, std::uint8_t* marks);
};

Kernels kernels_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return {avx512::look_through, avx512::best_drawn, avx512::mark_drawn};
    if (isa == AVX2) return {avx2::look_through, avx2::best_drawn, avx2::mark_drawn};
#endif
    (void)isa;
    return {generic::look_through, generic::best_drawn, generic::mark_drawn};
}

// What all rows share: outputs, rough ones at first, and for each row its length, how many of its largest outputs have to be exact, and how
// its token is drawn.
struct Looked {
    const HastenSketch& head;
    const Kernels kernels;
    float* out;            // [rows][outputs]
    const float* lengths;  // [rows]
    float* bounds;         // [rows][blocks] the most that an output of the block may be
    const std::int64_t* keep;
    const Draw* draws;  // [rows], or null
    std::int64_t rows, outputs, choosable, width, blocks, size;  // size: outputs of a piece

    std::int64_t pieces() const { return (choosable + size - 1) / size; }

    bool drawn(std::int64_t row) const { return draws != nullptr && draws[row].temperature > 0.0; }

    Rough piece(std::int64_t row, std::int64_t number) const {
        const std::int64_t first = number * size, left = choosable - first;
        return {out + row * outputs + first, head.error + first, first, left < size ? left : size};
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

// What is found in pieces of outputs: for each row and piece the row's largest, `most` places, and what would be drawn.
struct Found {
    Score* scores;
    Place* places;
    std::int64_t most;
};

Leaders merged(const Looked& looked, std::int64_t row, const Found& found) {
    const std::int64_t kept = looked.keep[row], pieces = looked.pieces();
    Place best[MOST_KEPT];
    Score drawn = {-INFINITY, -1};
    for (std::int64_t i = 0; i < kept; ++i) best[i] = {-INFINITY, -1};
    for (std::int64_t unit = row * pieces; unit < (row + 1) * pieces; ++unit) {
        const Place* some = found.places + unit * found.most;
        for (std::int64_t i = 0; i < kept && some[i].value > best[kept - 1].value; ++i) insert(some[i], kept, best);
        if (found.scores[unit].output >= 0 && found.scores[unit].value > drawn.value) drawn = found.scores[unit];
    }
    Leaders leaders = {{}, drawn.output};
    for (std::int64_t i = 0; i < kept; ++i) leaders.large[i] = best[i].output;
    return leaders;
}

// Computes the rough outputs and finds the leaders of all rows, and `marks` [rows][blocks] on their blocks. False when there is no memory.
bool find_leaders(const Looked& looked, Linear8 call, Leaders* leaders, std::uint8_t* marks) {
    const std::int64_t pieces = looked.pieces(), units = looked.rows * pieces;
    Found found = {nullptr, nullptr, 1};
    for (std::int64_t row = 0; row < looked.rows; ++row) found.most = looked.keep[row] > found.most ? looked.keep[row] : found.most;
    const std::size_t each = sizeof(Score) + static_cast<std::size_t>(found.most) * sizeof(Place);
    found.scores = static_cast<Score*>(scratch(SCRATCH_PARTS, static_cast<std::size_t>(units) * each));
    if (found.scores == nullptr || !linear8_prepare(call, looked.head.rough->packed)) return false;
    found.places = reinterpret_cast<Place*>(found.scores + units);
    std::atomic<bool> enough{true};
    std::vector<std::atomic<double>> best(static_cast<std::size_t>(looked.draws == nullptr ? 0 : looked.rows));  // so far: most are below it
    for (auto& score : best) score = -INFINITY;
    const auto draw = [&](std::int64_t row, const Rough& piece) {
        auto& sofar = best[static_cast<std::size_t>(row)];
        const Score found_here = looked.kernels.best_drawn(piece, looked.draws[row], sofar);
        if (found_here.output >= 0) sofar = found_here.value;
        return found_here;
    };
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            const std::int64_t first = number * looked.size, left = looked.outputs - first, some = left < looked.size ? left : looked.size;
            if (!linear8_piece(call, first, some, looked.out + first, looked.outputs)) enough = false;
            for (std::int64_t row = 0; number < pieces && row < looked.rows; ++row) {
                const std::int64_t unit = row * pieces + number;
                const Rough piece = looked.piece(row, number);
                float* bounds = looked.bounds + row * looked.blocks + first / looked.width;
                looked.kernels.look(piece, looked.lengths[row], looked.width, looked.keep[row], found.places + unit * found.most, bounds);
                found.scores[unit] = looked.drawn(row) ? draw(row, piece) : Score{-INFINITY, -1};
            }
        }
    };
    parallel((looked.outputs + looked.size - 1) / looked.size, 1, body);
    std::memset(marks, 0, static_cast<std::size_t>(looked.rows * looked.blocks));
    for (std::int64_t row = 0; row < looked.rows; ++row) {
        leaders[row] = merged(looked, row, found);
        std::uint8_t* marked = marks + row * looked.blocks;
        for (std::int64_t i = 0; i < looked.keep[row]; ++i) {
            if (leaders[row].large[i] >= 0) marked[leaders[row].large[i] / looked.width] = 1;
        }
        if (leaders[row].drawn >= 0) marked[leaders[row].drawn / looked.width] = 1;
    }
    return enough;
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
    const std::int64_t pieces = looked.pieces(), reach = (looked.choosable + looked.width - 1) / looked.width;
    std::vector<Limit> limits;
    for (std::int64_t row = 0; row < looked.rows; ++row) limits.push_back(limit_of(looked, row, leaders[row]));
    for (std::int64_t row = 0; row < looked.rows; ++row) {
        const float* bounds = looked.bounds + row * looked.blocks;
        const float limit = limits[static_cast<std::size_t>(row)].value;
        for (std::int64_t block = 0; block < looked.blocks; ++block) marks[row * looked.blocks + block] = block < reach && bounds[block] >= limit;
    }
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = unit / pieces;
            if (!looked.drawn(row)) continue;
            const double limit = limits[static_cast<std::size_t>(row)].score;
            std::uint8_t* marked = marks + row * looked.blocks;
            looked.kernels.mark_drawn(looked.piece(row, unit % pieces), looked.draws[row], looked.lengths[row], limit, looked.width, marked);
        }
    };
    if (looked.draws != nullptr) parallel(looked.rows * pieces, 8, body);
    for (std::int64_t i = 0; i < looked.rows * looked.blocks; ++i) marks[i] = marks[i] != 0 && done[i] == 0;
}

// Of each row the `count` largest choosable outputs by what they are said to be, equal ones by number: [rows][count], -1 where there are
// fewer. Looks only into blocks that may hold one.
void likeliest(const Looked& looked, std::int64_t count, std::int64_t* ids) {
    const std::int64_t reach = (looked.choosable + looked.width - 1) / looked.width;
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            const float* out = looked.out + row * looked.outputs;
            const float* bounds = looked.bounds + row * looked.blocks;
            Place best[MOST_KEPT];
            for (std::int64_t i = 0; i < count; ++i) best[i] = {-INFINITY, -1};
            for (std::int64_t block = 0; block < reach; ++block) {
                if (!(bounds[block] > best[count - 1].value)) continue;
                const std::int64_t last = (block + 1) * looked.width;
                for (std::int64_t i = block * looked.width; i < (last < looked.choosable ? last : looked.choosable); ++i) {
                    if (out[i] > best[count - 1].value) insert({out[i], i}, count, best);
                }
            }
            for (std::int64_t i = 0; i < count; ++i) ids[row * count + i] = best[i].output;
        }
    };
    parallel(looked.rows, 1, body);
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

std::int64_t piece_for(std::int64_t rows) {
    std::int64_t size = MOST_PIECE;
    while (size > LEAST_PIECE && size * rows > PIECE_FLOATS) size /= 2;
    return size;
}

// Where the `count` largest outputs of each row are told.
struct Likeliest {
    std::int64_t* ids;
    std::int64_t count;
};

int run_sketched(const HastenSketch& head, const float* x, const float* weight, float eps, const std::int64_t* keep, const Draw* draws,
                 float* out, std::int64_t rows, const Likeliest& told) {
    const HastenLinear& rough = *head.rough;
    const std::int64_t inputs = rough.inputs, outputs = rough.outputs, width = head.exact != nullptr ? PAIR_OUTPUTS : STRIP_OUTPUTS;
    const std::int64_t blocks = (outputs + width - 1) / width;
    const auto each = sizeof(Leaders) + (1 + static_cast<std::size_t>(blocks)) * sizeof(float) + 2 * static_cast<std::size_t>(blocks);
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * inputs)));
    auto* row_scale = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows) * 4));
    auto* leaders = static_cast<Leaders*>(scratch(SCRATCH_HEAD, static_cast<std::size_t>(rows) * each));
    if (codes == nullptr || row_scale == nullptr || leaders == nullptr) return NO_MEMORY;
    const RowSource source = weight == nullptr ? PLAIN : NORM;
    if (!make_rows({x, weight, eps, source, rows, inputs, rough.block, codes, inputs, row_scale, nullptr})) return NO_MEMORY;
    auto* lengths = reinterpret_cast<float*>(leaders + rows);
    float* bounds = lengths + rows;
    auto* leading = reinterpret_cast<std::uint8_t*>(bounds + rows * blocks);
    auto* marks = leading + rows * blocks;
    measure(codes, row_scale, head.rounding, rows, inputs, lengths);
    const RowWork plain = {x, weight, eps, source, rows, inputs, 0, nullptr, 0, nullptr, nullptr};
    auto compute = [&](const std::uint8_t* marked) {
        const std::vector<std::int64_t> wanted = wanted_blocks(marked, rows, blocks);
        if (wanted.empty()) return SOME;
        if (head.exact != nullptr) return compute_wanted(*head.exact, codes, row_scale, rows, wanted, blocks, out);
        return compute_wanted(*head.grouped, plain, marked, wanted, blocks, out);
    };
    const Looked looked = {head, kernels_for(current_isa()), out, lengths, bounds, keep, draws, rows, outputs, head.choosable, width, blocks, piece_for(rows)};
    if (!find_leaders(looked, linear_call(rough, codes, row_scale, nullptr, out, rows), leaders, leading)) return NO_MEMORY;
    Computed computed = compute(leading);
    if (computed == SOME) {
        mark(looked, leaders, leading, marks);
        computed = compute(marks);
    }
    if (computed != FAILED && told.count > 0) likeliest(looked, told.count, told.ids);
    return computed == FAILED ? NO_MEMORY : OK;
}

}  // namespace

// The head applied to x / rms(x) * weight, or to x where there is no weight: [rows][outputs]. Of each row the `keep` (1 to 64) largest of
// the choosable outputs are exact, and all others below them; so is the one that `draws` (or null) draws, with the largest score. Of what is
// given so for each row, the `count` (0 to 64) largest choosable ones are `ids` [rows][count], -1 behind those above -infinity.
EXPORT int hst_sketched_head(const HastenSketch* head, const float* x, const float* weight, float eps, const std::int64_t* keep,
                             const Draw* draws, float* out, std::int64_t rows, std::int64_t count, std::int64_t* ids) {
    if (rows < 0 || count < 0 || count > MOST_KEPT || !fits(*head)) return BAD_SIZE;
    for (std::int64_t row = 0; row < rows; ++row) {
        if (keep[row] < 1 || keep[row] > MOST_KEPT || keep[row] > head->choosable) return BAD_SIZE;
    }
    if (rows == 0) return OK;
    try {
        return run_sketched(*head, x, weight, eps, keep, draws, out, rows, {ids, count});
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}
