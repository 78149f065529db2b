// Which instruction sets the processor and the system grant, and which one the kernels use.
#pragma once

namespace hasten {

// Ordered: a level implies the ones below it. Floating-point kernels know GENERIC, AVX2 and AVX512 (levels
// VNNI and AMX); attention over 16-bit pools has tiles at AMX.
enum Isa { GENERIC = 0, AVX2 = 1, VNNI = 2, AMX = 3 };

// The highest level that this processor has; asks the system for AMX state once.
Isa best_isa();
// The level in use: the best one unless set_isa lowered it.
Isa current_isa();
// False when the processor does not have the level.
bool set_isa(int level);

// Whether lines that are asked for past the outer caches come as fast as others. On Intel's processors such a line goes to the first-level
// cache alone, which waits for a dozen at a time: reading is two to three times slower.
extern const bool FETCHES_PAST_CACHES;

}  // namespace hasten
