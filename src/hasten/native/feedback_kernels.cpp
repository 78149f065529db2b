// The functions of feedback.h at one level. A lane is an output, so that nothing is summed across lanes.
#include <initializer_list>

#include "feedback.h"
#include "few_bits.h"
#include "lanes.h"

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

constexpr float LEAST_VALUE = -128.0f, MOST_VALUE = 127.0f, INFINITE = 3.4e38f;
constexpr float RANGES[] = {1.06f, 1.0f, 0.94f, 0.88f, 0.82f, 0.76f, 0.7f, 0.64f, 0.58f};
constexpr float SIDES[] = {0.0f, 0.17f, 0.33f, 0.5f, 0.67f, 0.83f, 1.0f};
constexpr float OVER = 1.0f;  // steps that a grid may lie beyond the group's own range on either side
constexpr int OFFSET_STEPS = 3;

INLINE Floats nearest(Floats value) { return (value + all(ROUNDER)) - all(ROUNDER); }
INLINE Floats within(Floats value, float low, float high) { return least(most(value, all(low)), all(high)); }
// The largest code that does not lead out of int8. Half a step below the integer, so that rounding is rounding down.
INLINE Floats top_code(int bits, Floats scale, Floats offset) {
    const Floats room = (all(MOST_VALUE) - offset) / scale;
    const Floats near = nearest(room);
    return least(where_less(room, near, near - all(1.0f), near), all(static_cast<float>(largest_code(bits))));
}

struct Grid {
    Floats scale, offset;
};

INLINE Grid grid_of(int bits, Floats scale, Floats offset) {
    return {within(nearest(scale), 1.0f, static_cast<float>(largest_scale(bits))), within(nearest(offset), LEAST_VALUE, MOST_VALUE)};
}

// [outputs][32] to one output a lane and back. Outputs behind the last are those of zeros.
void gather(const float* from, std::int64_t outputs, std::int64_t first, Floats* to) {
    const int some = outputs - first < LANES ? static_cast<int>(outputs - first) : LANES;
    float lanes[LANES] = {};
    for (int i = 0; i < GROUP; ++i) {
        for (int lane = 0; lane < some; ++lane) lanes[lane] = from[(first + lane) * GROUP + i];
        to[i] = load(lanes);
    }
}

void scatter(const Floats* from, std::int64_t outputs, std::int64_t first, int count, float* to) {
    const int some = outputs - first < LANES ? static_cast<int>(outputs - first) : LANES;
    float lanes[LANES];
    for (int i = 0; i < count; ++i) {
        store(lanes, from[i]);
        for (int lane = 0; lane < some; ++lane) to[(first + lane) * GROUP + i] = lanes[lane];
    }
}

Floats gather_one(const float* from, std::int64_t outputs, std::int64_t first, float otherwise) {
    float lanes[LANES];
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = first + lane < outputs ? from[first + lane] : otherwise;
    return load(lanes);
}

void scatter_one(Floats from, std::int64_t outputs, std::int64_t first, float* to) {
    float lanes[LANES];
    store(lanes, from);
    for (int lane = 0; lane < LANES && first + lane < outputs; ++lane) to[first + lane] = lanes[lane];
}

// The group of sixteen outputs, and the best that was found for it.
struct Search {
    const GroupFit& work;
    Floats weights[GROUP], targets[GROUP];
    Grid best;
    Floats error;
};

// Error of a grid when each input is rounded by itself; `mean` becomes the mean of what is left, both weighted by cost.
Floats plain_error(const Search& search, Grid grid, Floats total_cost, Floats* mean) {
    const Floats inverse = all(1.0f) / grid.scale, top = top_code(search.work.bits, grid.scale, grid.offset);
    Floats error = all(0.0f), sum = all(0.0f);
    for (int i = 0; i < search.work.count; ++i) {
        const Floats code = least(most(nearest((search.targets[i] - grid.offset) * inverse), all(0.0f)), top);
        const Floats rest = search.targets[i] - (code * grid.scale + grid.offset), weighed = rest * all(search.work.cost[i]);
        error = error + rest * weighed;
        sum = sum + weighed;
    }
    *mean = sum / total_cost;
    return error;
}

// Error of a grid when each input is rounded with feedback, and the codes and values if asked.
Floats feedback_error(const Search& search, Grid grid, Floats* codes, Floats* values) {
    const Floats inverse = all(1.0f) / grid.scale, top = top_code(search.work.bits, grid.scale, grid.offset);
    Floats lost[GROUP], error = all(0.0f);
    for (int j = 0; j < search.work.count; ++j) {
        const float* factor = search.work.transposed + j * GROUP;
        Floats wanted = search.targets[j], other = all(0.0f);
        int i = 0;
        for (; i + 1 < j; i += 2) {
            wanted = fused(lost[i], all(factor[i]), wanted);
            other = fused(lost[i + 1], all(factor[i + 1]), other);
        }
        if (i < j) wanted = fused(lost[i], all(factor[i]), wanted);
        wanted = wanted + other;
        const Floats code = least(most(nearest((wanted - grid.offset) * inverse), all(0.0f)), top);
        const Floats value = code * grid.scale + grid.offset, rest = wanted - value;
        lost[j] = search.weights[j] - value;
        error = error + (rest * rest) * all(search.work.cost[j]);
        if (codes != nullptr) codes[j] = code, values[j] = value;
    }
    return error;
}

void search_plainly(Search& search) {
    const int count = static_cast<int>(search.work.count), bits = search.work.bits;
    const float steps = static_cast<float>(largest_code(bits));
    Floats low = search.targets[0], high = low, total_cost = all(1e-30f);
    for (int i = 0; i < count; ++i) {
        low = least(low, search.targets[i]);
        high = most(high, search.targets[i]);
        total_cost = total_cost + all(search.work.cost[i]);
    }
    search.best = grid_of(bits, all(1.0f), low);
    search.error = all(INFINITE);
    for (const float share : RANGES) {
        for (const float side : SIDES) {
            Grid grid = grid_of(bits, (high - low) * all(share / steps), low);
            grid = grid_of(bits, grid.scale, low - all(OVER) * grid.scale + all(side) * (high - low - all(steps - 2.0f * OVER) * grid.scale));
            for (int step = 0; step < OFFSET_STEPS; ++step) {
                Floats mean;
                const Floats error = plain_error(search, grid, total_cost, &mean);
                search.best.scale = where_less(error, search.error, grid.scale, search.best.scale);
                search.best.offset = where_less(error, search.error, grid.offset, search.best.offset);
                search.error = least(error, search.error);
                grid = grid_of(bits, grid.scale, grid.offset + mean);
            }
        }
    }
}

void try_grid(Search& search, Floats scale, Floats offset) {
    const Grid grid = grid_of(search.work.bits, scale, offset);
    const Floats error = feedback_error(search, grid, nullptr, nullptr);
    search.best.scale = where_less(error, search.error, grid.scale, search.best.scale);
    search.best.offset = where_less(error, search.error, grid.offset, search.best.offset);
    search.error = least(error, search.error);
}

// Neighbours of the best grid, by their true error: other scales about the same middle, and the grid moved by `move`.
void search_around(Search& search, Floats move) {
    const Grid from = search.best;
    const float middle = 0.5f * static_cast<float>(largest_code(search.work.bits));
    for (const float wider : {-1.0f, 0.0f, 1.0f}) {
        const Floats scale = from.scale + all(wider), offset = from.offset - all(middle * wider);
        for (const float side : {-1.0f, 0.0f, 1.0f}) try_grid(search, scale, offset + all(side) * move);
    }
}

}  // namespace

void fit_outputs(const GroupFit& work, std::int64_t first, std::int64_t last) {
    const int count = static_cast<int>(work.count);
    Floats codes[GROUP], values[GROUP];
    for (std::int64_t at = first; at < last; at += LANES) {
        Search search = {work, {}, {}, {}, {}};
        gather(work.weights, work.outputs, at, search.weights);
        gather(work.targets, work.outputs, at, search.targets);
        if (work.started) {
            search.best = {gather_one(work.scale, work.outputs, at, 1.0f), gather_one(work.offset, work.outputs, at, 0.0f)};
        } else {
            search_plainly(search);
        }
        search.error = all(INFINITE);
        search_around(search, nearest(search.best.scale * all(0.25f)));
        search_around(search, all(1.0f));
        const Floats error = feedback_error(search, search.best, codes, values);
        scatter(codes, work.outputs, at, count, work.codes);
        scatter(values, work.outputs, at, count, work.values);
        scatter_one(search.best.scale, work.outputs, at, work.scale);
        scatter_one(search.best.offset, work.outputs, at, work.offset);
        scatter_one(error, work.outputs, at, work.error);
    }
}

void descend_outputs(const GroupDescent& work, std::int64_t first, std::int64_t last) {
    const int count = static_cast<int>(work.count);
    Floats slopes[GROUP], codes[GROUP];
    for (std::int64_t at = first; at < last; at += LANES) {
        gather(work.slopes, work.outputs, at, slopes);
        gather(work.codes, work.outputs, at, codes);
        const Floats scale = gather_one(work.scale, work.outputs, at, 1.0f), offset = gather_one(work.offset, work.outputs, at, 0.0f);
        const Floats top = top_code(work.bits, scale, offset), inverse = all(1.0f) / scale;
        for (std::int64_t pass = 0; pass < work.passes; ++pass) {
            for (int i = 0; i < count; ++i) {
                const float* line = work.moments + i * GROUP;
                const Floats wanted = codes[i] + nearest(slopes[i] * all(1.0f / line[i]) * inverse);
                const Floats code = least(most(wanted, all(0.0f)), top), move = (code - codes[i]) * scale, back = all(0.0f) - move;
                codes[i] = code;
                for (int j = 0; j < count; ++j) slopes[j] = fused(back, all(line[j]), slopes[j]);
            }
        }
        scatter(codes, work.outputs, at, count, work.codes);
        for (int i = 0; i < count; ++i) codes[i] = codes[i] * scale + offset;
        scatter(codes, work.outputs, at, count, work.values);
    }
}

}  // namespace HASTEN_LEVEL
}  // namespace hasten
