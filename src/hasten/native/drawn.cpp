// Which values of a row may be drawn from it: a piece of values a thread and time, then those of all pieces.
#include <cmath>

#include "calls.h"
#include "noise.h"
#include "sketch.h"
#include "threads.h"

using namespace hasten;

namespace {

enum Status { OK = 0, BAD_SIZE = 1, NO_MEMORY = 2 };

const std::int64_t PIECE = 16384, MOST_OF_PIECE = 32;
const double LEAST_TEMPERATURE = 1e-3;  // below it scores are so large that they are rounded by more than the slack

using NearlyBest = std::int64_t (*)(const Rough& rough, const Draw& draw, const std::int64_t* ids, double slack, std::int64_t most, Score* found);

NearlyBest kernel_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::nearly_best;
    if (isa == AVX2) return avx2::nearly_best;
#endif
    (void)isa;
    return generic::nearly_best;
}

struct Found {
    std::int64_t count;
    Score scores[MOST_OF_PIECE];
};

}  // namespace

// Places, ascending, of all values of which value / temperature + noise may be the largest there is, in [most]; `found`: how many, or -1
// where they are too many to tell. `ids` [count] are the tokens whose noise it is, or null for 0, 1, 2 ... No value may be NaN or +infinity.
EXPORT int hst_drawn(const float* values, const std::int64_t* ids, std::int64_t count, const Draw* draw, std::int64_t most,
                     std::int64_t* places, std::int64_t* found) {
    if (count < 1 || most < 1 || !(draw->temperature >= LEAST_TEMPERATURE)) return BAD_SIZE;
    const std::int64_t pieces = (count + PIECE - 1) / PIECE;
    auto* all = static_cast<Found*>(scratch(SCRATCH_HEAD, static_cast<std::size_t>(pieces) * sizeof(Found)));
    if (all == nullptr) return NO_MEMORY;
    const NearlyBest nearly_best = kernel_for(current_isa());
    const double slack = 2 * Noise::SLACK;
    auto body = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t piece = begin; piece < end; ++piece) {
            const std::int64_t first = piece * PIECE, some = count - first < PIECE ? count - first : PIECE;
            // Values are exact: what they are off by is read, and taken nought times.
            const Rough rough = {values + first, values + first, first, some};
            all[piece].count = nearly_best(rough, *draw, ids == nullptr ? nullptr : ids + first, slack, MOST_OF_PIECE, all[piece].scores);
        }
    };
    parallel(pieces, 1, body);
    double best = -INFINITY;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        for (std::int64_t i = 0; i < all[piece].count; ++i) best = all[piece].scores[i].value > best ? all[piece].scores[i].value : best;
    }
    *found = 0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        if (all[piece].count < 0) *found = -1;
        for (std::int64_t i = 0; i < all[piece].count && *found >= 0; ++i) {
            if (all[piece].scores[i].value < best - slack) continue;
            if (*found == most) *found = -1;
            if (*found >= 0) places[(*found)++] = all[piece].scores[i].output;
        }
        if (*found < 0) break;
    }
    return OK;
}
