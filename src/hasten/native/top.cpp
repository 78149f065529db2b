// The k largest values of rows, and of a linear layer's outputs without a place for all outputs: a piece of outputs at a time is computed
// into a thread's own memory and looked through while it is in the cache.
#include <atomic>
#include <cmath>

#include "linear.h"
#include "threads.h"

namespace hasten {
namespace {

const std::int64_t PIECE_PAIRS = 32, PIECE_OUTPUTS = PIECE_PAIRS * PAIR_OUTPUTS;

// Puts (value, id) in its place of a descending list; ids come in ascending order, so an equal value goes behind.
void insert(float value, std::int64_t id, std::int64_t k, float* values, std::int64_t* ids) {
    std::int64_t at = k - 1;
    for (; at > 0 && value > values[at - 1]; --at) {
        values[at] = values[at - 1];
        ids[at] = ids[at - 1];
    }
    values[at] = value;
    ids[at] = id;
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef std::int32_t FourBits __attribute__((vector_size(16)));
const std::int64_t LOOK = 32;

// Whether one of the LOOK values from `x` on is above the limit.
bool any_above(const float* x, float limit) {
    const Four limits = {limit, limit, limit, limit};
    FourBits above = {};
    for (std::int64_t i = 0; i < LOOK; i += 4) above |= *reinterpret_cast<const Four*>(x + i) > limits;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

// Outputs from `first` on in `x`.
void look_through(const float* x, std::int64_t count, std::int64_t first, std::int64_t k, float* values, std::int64_t* ids) {
    for (std::int64_t from = 0; from < count; from += LOOK) {
        const std::int64_t end = from + LOOK < count ? from + LOOK : count;
        if (end - from == LOOK && !any_above(x + from, values[k - 1])) continue;
        for (std::int64_t i = from; i < end; ++i) {
            if (x[i] > values[k - 1]) insert(x[i], first + i, k, values, ids);
        }
    }
}

void forget(std::int64_t count, float* values, std::int64_t* ids) {
    for (std::int64_t i = 0; i < count; ++i) values[i] = -INFINITY, ids[i] = -1;
}

// Of one row; beside the first `width` values those at `places`.
void one_largest_and_mass(const float* row, std::int64_t width, const std::int64_t* places, std::int64_t length, std::int64_t k,
                          float reach, std::int64_t* ids, float* values, double* mass) {
    forget(k, values, ids);
    look_through(row, width, 0, k, values, ids);
    for (std::int64_t i = 0; i < length; ++i) {
        const float value = row[places[i]];
        if (value > values[k - 1]) insert(value, places[i], k, values, ids);
    }
    double sum = 0.0;
    const float least = values[0] - reach;
    auto add = [&](float value) {
        if (value > least) sum += std::exp(static_cast<double>(value) - values[0]);
    };
    for (std::int64_t from = 0; from < width; from += LOOK) {
        const std::int64_t end = from + LOOK < width ? from + LOOK : width;
        if (end - from == LOOK && !any_above(row + from, least)) continue;
        for (std::int64_t i = from; i < end; ++i) add(row[i]);
    }
    for (std::int64_t i = 0; i < length; ++i) add(row[places[i]]);
    *mass = sum;
}

}  // namespace

void largest(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, std::int64_t k, std::int64_t* ids, float* values) {
    auto body = [&](std::int64_t begin, std::int64_t end) {
        forget((end - begin) * k, values + begin * k, ids + begin * k);
        for (std::int64_t row = begin; row < end; ++row) look_through(rows + row * stride, width, 0, k, values + row * k, ids + row * k);
    };
    parallel(count, 1, body);
}

void largest_and_mass(const float* rows, std::int64_t stride, std::int64_t count, std::int64_t width, const std::int64_t* const* places,
                      const std::int64_t* lengths, std::int64_t k, float reach, std::int64_t* ids, float* values, double* mass) {
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            one_largest_and_mass(rows + row * stride, width, places[row], lengths[row], k, reach, ids + row * k, values + row * k, mass + row);
        }
    };
    parallel(count, 1, body);
}

bool linear8_top(const Linear8& asked, const std::uint8_t* packed, std::int64_t k, std::int64_t* ids, float* values) {
    const std::int64_t pieces = (asked.outputs + PIECE_OUTPUTS - 1) / PIECE_OUTPUTS, rows = asked.rows, each = rows * k;
    if (rows == 0) return true;
    Linear8 call = asked;
    if (!linear8_prepare(call, packed)) return false;
    auto* memory = static_cast<char*>(scratch(SCRATCH_HEAD, static_cast<std::size_t>(pieces * each * 12 + 64)));
    if (memory == nullptr) return false;
    auto* found_ids = reinterpret_cast<std::int64_t*>(memory);
    auto* found = reinterpret_cast<float*>(memory + pieces * each * 8);
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t begin, std::int64_t end) {
        auto* room = static_cast<float*>(scratch(SCRATCH_GATE, static_cast<std::size_t>(rows * PIECE_OUTPUTS) * 4));
        for (std::int64_t piece = begin; piece < end; ++piece) {
            const std::int64_t first = piece * PIECE_OUTPUTS, left = call.outputs - first;
            const std::int64_t count = left < PIECE_OUTPUTS ? left : PIECE_OUTPUTS;
            if (room == nullptr || !linear8_piece(call, first, count, room, PIECE_OUTPUTS)) {
                enough = false;
                return;
            }
            forget(each, found + piece * each, found_ids + piece * each);
            for (std::int64_t row = 0; row < rows; ++row) {
                const std::int64_t at = piece * each + row * k;
                look_through(room + row * PIECE_OUTPUTS, count, first, k, found + at, found_ids + at);
            }
        }
    };
    parallel(pieces, 1, body);
    if (!enough) return false;
    forget(each, values, ids);
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        for (std::int64_t row = 0; row < rows; ++row) {
            for (std::int64_t i = 0; i < k; ++i) {
                const std::int64_t at = (piece * rows + row) * k + i;
                if (!(found[at] > values[row * k + k - 1])) break;
                insert(found[at], found_ids[at], k, values + row * k, ids + row * k);
            }
        }
    }
    return true;
}

}  // namespace hasten
