// A head in two steps. Its weights in four bits, the sketch, give every output roughly; only outputs that may be among a row's largest
// are computed from the weights proper, with the bits that these give. The others keep their rough values, which lie below.
//
// How far a rough value is off: the sum over inputs of (error of a weight) * x. Rows are rotated, so that within a block of the rotation
// any of its values is as likely as any other: the sum is normal, with a deviation of at most |x| times the root of the errors' mean
// square in the block where that is largest. `error` is a multiple of that; native/sketch.py says how many deviations, and the odds.
//
// Where a row's token is drawn by chance, the output with the largest value / temperature + noise has to be exact too. Noise is hashed for
// all outputs, but its logarithms are taken only where it is large enough for the group of outputs that it belongs to.
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "calls.h"
#include "noise.h"
#include "rows.h"
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

// Field for field as in sketch.py. Temperature 0: no token is drawn.
struct HastenDraw {
    double temperature;
    std::uint64_t seed;
    std::int64_t position;
};

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

const std::int64_t PIECE = 8192;
const int MOST_KEPT = 64;

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
const std::int64_t LOOK = 16;  // divides the blocks that outputs are computed in

// The largest of value + weight * error of `count` outputs, at most LOOK.
inline float most_of(const float* value, const float* error, float weight, std::int64_t count) {
    float most = -INFINITY;
    if (count < LOOK) {
        for (std::int64_t i = 0; i < count; ++i) most = value[i] + weight * error[i] > most ? value[i] + weight * error[i] : most;
        return most;
    }
    const Four weights = {weight, weight, weight, weight};
    Four mosts = {most, most, most, most};
    for (std::int64_t i = 0; i < LOOK; i += 4) {
        const Four some = *reinterpret_cast<const Four*>(value + i) + weights * *reinterpret_cast<const Four*>(error + i);
        mosts = some > mosts ? some : mosts;
    }
    for (int i = 0; i < 4; ++i) most = mosts[i] > most ? mosts[i] : most;
    return most;
}

void insert(float value, std::int64_t kept, float* values) {
    std::int64_t at = kept - 1;
    for (; at > 0 && value > values[at - 1]; --at) values[at] = values[at - 1];
    values[at] = value;
}

// The largest values that `count` outputs have at least: `kept` of them, descending.
void least_values(const float* value, const float* error, float length, std::int64_t count, std::int64_t kept, float* values) {
    for (std::int64_t i = 0; i < kept; ++i) values[i] = -INFINITY;
    for (std::int64_t from = 0; from < count; from += LOOK) {
        const std::int64_t end = from + LOOK < count ? from + LOOK : count;
        if (!(most_of(value + from, error + from, -length, end - from) > values[kept - 1])) continue;
        for (std::int64_t i = from; i < end; ++i) {
            const float least = value[i] - length * error[i];
            if (least > values[kept - 1]) insert(least, kept, values);
        }
    }
}

// Some outputs of a row whose token is drawn, from output `first` on.
struct Drawn {
    const float* value;
    const float* error;
    std::int64_t first, count;
    double temperature;
    Noise noise;

    // Hands over, one by one, outputs whose score (value + weight * error) / temperature + noise is above `least`, which may rise.
    template <class Take>
    void above(float weight, const double& least, Take take) const {
        for (std::int64_t from = 0; from < count; from += LOOK) {
            const std::int64_t end = from + LOOK < count ? from + LOOK : count;
            const double wanted = least - most_of(value + from, error + from, weight, end - from) / temperature;
            if (!(wanted <= Noise::MOST)) continue;  // nor where it is NaN
            const std::uint64_t bound = Noise::least_bits(wanted);
            for (std::int64_t i = from; i < end; ++i) {
                const std::uint64_t bits = noise.bits(first + i);
                if (bits < bound) continue;
                const double score = static_cast<double>(value[i] + weight * error[i]) / temperature + Noise::of(bits);
                if (score > least) take(i, score);
            }
        }
    }
};

// What all rows share: rough outputs, and for each row its length and how many of its largest outputs have to be exact.
struct Looked {
    const HastenSketch& head;
    const float* out;      // [rows][outputs]
    const float* lengths;  // [rows]
    const std::int64_t* keep;
    const HastenDraw* draws;  // [rows], or null
    std::int64_t rows, outputs, choosable;

    std::int64_t pieces() const { return (choosable + PIECE - 1) / PIECE; }

    bool drawn(std::int64_t row) const { return draws != nullptr && draws[row].temperature > 0.0; }

    Drawn draw(std::int64_t row, std::int64_t first, std::int64_t count) const {
        return {out + row * outputs + first, head.error + first, first, count, draws[row].temperature, Noise(draws[row].seed, draws[row].position)};
    }
};

// What has to be reached to be among a row's `keep` largest, and to be drawn.
struct Limit {
    double score;
    float value;
};

// What a row's `keep` largest outputs, and the one that is drawn, have at least: [rows] in `limits`. False when there is no memory.
bool find_limits(const Looked& looked, Limit* limits) {
    const std::int64_t pieces = looked.pieces(), places = looked.rows * pieces;
    auto* scores = static_cast<double*>(scratch(SCRATCH_WEIGHTS, static_cast<std::size_t>(places * (4 * MOST_KEPT + 8) + 8)));
    if (scores == nullptr) return false;
    auto* found = reinterpret_cast<float*>(scores + places);
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = unit / pieces, first = unit % pieces * PIECE, left = looked.choosable - first;
            const std::int64_t count = left < PIECE ? left : PIECE;
            least_values(looked.out + row * looked.outputs + first, looked.head.error + first, looked.lengths[row], count, looked.keep[row],
                         found + unit * MOST_KEPT);
            double best = -INFINITY;
            if (looked.drawn(row)) looked.draw(row, first, count).above(-looked.lengths[row], best, [&](std::int64_t, double score) { best = score; });
            scores[unit] = best;
        }
    };
    parallel(places, 2, body);
    for (std::int64_t row = 0; row < looked.rows; ++row) {
        const std::int64_t kept = looked.keep[row];
        float values[MOST_KEPT];
        double best = -INFINITY;
        for (std::int64_t i = 0; i < kept; ++i) values[i] = -INFINITY;
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
            const float* some = found + (row * pieces + piece) * MOST_KEPT;
            for (std::int64_t i = 0; i < kept && some[i] > values[kept - 1]; ++i) insert(some[i], kept, values);
            if (scores[row * pieces + piece] > best) best = scores[row * pieces + piece];
        }
        limits[row] = {best - Noise::SLACK, values[kept - 1]};
    }
    return true;
}

// Marks the blocks of `width` outputs that hold one which may reach its row's limit: bytes [rows][blocks].
void mark(const Looked& looked, const Limit* limits, std::int64_t width, std::int64_t blocks, std::uint8_t* marks) {
    std::memset(marks, 0, static_cast<std::size_t>(looked.rows * blocks));
    const std::int64_t pieces = looked.pieces();
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) {
            const std::int64_t row = unit / pieces, first = unit % pieces * PIECE, left = looked.choosable - first;
            const std::int64_t count = left < PIECE ? left : PIECE;
            const float* value = looked.out + row * looked.outputs + first;
            const float* error = looked.head.error + first;
            std::uint8_t* marked = marks + row * blocks;
            for (std::int64_t from = 0; from < count; from += LOOK) {
                const std::int64_t some = from + LOOK < count ? LOOK : count - from;
                if (most_of(value + from, error + from, looked.lengths[row], some) >= limits[row].value) marked[(first + from) / width] = 1;
            }
            if (!looked.drawn(row)) continue;
            looked.draw(row, first, count).above(looked.lengths[row], limits[row].score, [&](std::int64_t i, double) { marked[(first + i) / width] = 1; });
        }
    };
    parallel(looked.rows * pieces, 2, body);
}

// The head whole, where so much of it is wanted that finding and reading it piece by piece would take longer.
const std::int64_t MOST_MARKED = 4;  // one block in so many

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
bool compute_wanted(const HastenLinear& exact, const std::int8_t* codes, const float* row_scale, std::int64_t rows,
                    const std::vector<std::int64_t>& wanted, std::int64_t blocks, float* out) {
    Linear8 call = linear_call(exact, codes, row_scale, nullptr, out, rows);
    const auto count = static_cast<std::int64_t>(wanted.size());
    if (count * MOST_MARKED > blocks) return linear8(call, exact.packed);
    if (!linear8_prepare(call, exact.packed)) return false;
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = wanted[static_cast<std::size_t>(i)] * PAIR_OUTPUTS, left = exact.outputs - first;
            if (!linear8_piece(call, first, left < PAIR_OUTPUTS ? left : PAIR_OUTPUTS, out + first, exact.outputs)) enough = false;
        }
    };
    parallel(count, 1, body);
    return enough;
}

// The same over GGUF's codes; `x` are the float rows. A strip is computed for the rows that marked it, or for all where most did.
bool compute_wanted(const HastenGrouped& exact, const float* x, std::int64_t rows, const std::uint8_t* marks,
                    const std::vector<std::int64_t>& wanted, std::int64_t blocks, float* out) {
    const std::int64_t groups = exact.inputs / GROUP_INPUTS;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * exact.inputs)));
    auto* scales = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows * groups) * 12));
    if (codes == nullptr || scales == nullptr) return false;
    const GroupedRows rounded = {codes, scales, scales + rows * groups, reinterpret_cast<std::int16_t*>(scales + 2 * rows * groups), rows, exact.inputs};
    round_in_groups(x, rounded);
    const GroupedCall call = {rounded, nullptr, nullptr, out, exact.outputs};
    const auto count = static_cast<std::int64_t>(wanted.size());
    if (count * MOST_MARKED > blocks) {
        grouped_linear(call, exact.parts, 1);
        return true;
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
    return true;
}

bool fits(const HastenSketch& head) {
    const HastenLinear& rough = *head.rough;
    if ((head.exact == nullptr) == (head.grouped == nullptr) || rough.bias != nullptr || rough.four_bits == 0) return false;
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

int run_sketched(const HastenSketch& head, const float* x, const float* weight, float eps, const std::int64_t* keep, const HastenDraw* draws,
                 float* out, std::int64_t rows) {
    const HastenLinear& rough = *head.rough;
    const std::int64_t inputs = rough.inputs, outputs = rough.outputs, width = head.exact != nullptr ? PAIR_OUTPUTS : STRIP_OUTPUTS;
    const std::int64_t blocks = (outputs + width - 1) / width;
    auto* codes = static_cast<std::int8_t*>(scratch(SCRATCH_CODES, static_cast<std::size_t>(rows * inputs)));
    auto* row_scale = static_cast<float*>(scratch(SCRATCH_SCALES, static_cast<std::size_t>(rows) * 4));
    auto* made = static_cast<float*>(scratch(SCRATCH_GATE, static_cast<std::size_t>(rows * inputs) * 4));
    auto* limits = static_cast<Limit*>(scratch(SCRATCH_HEAD, static_cast<std::size_t>(rows) * (4 + sizeof(Limit) + static_cast<std::size_t>(blocks))));
    if (codes == nullptr || row_scale == nullptr || made == nullptr || limits == nullptr) return NO_MEMORY;
    const RowSource source = weight == nullptr ? PLAIN : NORM;
    if (!make_rows({x, weight, eps, source, rows, inputs, rough.block, codes, inputs, row_scale, nullptr})) return NO_MEMORY;
    if (!linear8(linear_call(rough, codes, row_scale, nullptr, out, rows), rough.packed)) return NO_MEMORY;
    auto* lengths = reinterpret_cast<float*>(limits + rows);
    auto* marks = reinterpret_cast<std::uint8_t*>(lengths + rows);
    measure(codes, row_scale, head.rounding, rows, inputs, lengths);
    const Looked looked = {head, out, lengths, keep, draws, rows, outputs, head.choosable};
    if (!find_limits(looked, limits)) return NO_MEMORY;
    mark(looked, limits, width, blocks, marks);
    const std::vector<std::int64_t> wanted = wanted_blocks(marks, rows, blocks);
    if (head.exact != nullptr) return compute_wanted(*head.exact, codes, row_scale, rows, wanted, blocks, out) ? OK : NO_MEMORY;
    if (source == NORM && !make_rows({x, weight, eps, NORM, rows, inputs, 0, nullptr, 0, nullptr, made})) return NO_MEMORY;
    return compute_wanted(*head.grouped, source == NORM ? made : x, rows, marks, wanted, blocks, out) ? OK : NO_MEMORY;
}

}  // namespace

// The head applied to x / rms(x) * weight, or to x where there is no weight: [rows][outputs]. Of each row the `keep` (1 to 64) largest of
// the choosable outputs are exact, and all others below them; so is the one that `draws` (or null) draws, with the largest score.
EXPORT int hst_sketched_head(const HastenSketch* head, const float* x, const float* weight, float eps, const std::int64_t* keep,
                             const HastenDraw* draws, float* out, std::int64_t rows) {
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
