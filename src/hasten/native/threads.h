// A small pool of threads that share ranges of independent work.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hasten {

// Work on units [begin, end). Called from several threads at once, each unit exactly once.
using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);

// Run `function` over [0, units) in pieces of `grain`. Every thread starts with a contiguous share and, when done, takes pieces
// from the end of others' shares. Which thread runs a unit is not fixed, so units must not depend on each other.
// Calls from several threads at once are safe: while one uses the pool the others run their work alone.
void parallel_for(std::int64_t units, std::int64_t grain, RangeFunction function, void* context);

template <class Body>
void parallel(std::int64_t units, std::int64_t grain, Body& body) {
    parallel_for(units, grain, [](void* context, std::int64_t begin, std::int64_t end) { (*static_cast<Body*>(context))(begin, end); },
                 &body);
}

// Threads that work together, the caller included; at least 1.
void set_threads(int count);
int threads();

// Scratch memory of the calling thread, 64-byte aligned, at least `bytes` long, contents unspecified. Each `slot` is a buffer of
// its own and keeps its memory until the thread ends; nullptr when there is no memory.
enum ScratchSlot { SCRATCH_ROWS, SCRATCH_CODES, SCRATCH_SCALES, SCRATCH_SUMS, SCRATCH_FLOATS, SCRATCH_PARTS, SCRATCH_QUERY, SCRATCH_WEIGHTS, SCRATCH_GATE, SCRATCH_HEAD, SCRATCH_LAYER, SCRATCH_SLOTS };
void* scratch(ScratchSlot slot, std::size_t bytes);

}  // namespace hasten
