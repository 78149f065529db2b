// Asking for weights before they are used.
#pragma once

#include <immintrin.h>

#include "isa.h"

namespace hasten {
namespace {

// One line. A step reads weights once, so where it costs nothing they are brought past the outer caches, which keep what the next step's
// Python needs instead.
inline __attribute__((always_inline)) void fetch_line(const void* at) {
    if (FETCHES_PAST_CACHES) {
        _mm_prefetch(static_cast<const char*>(at), _MM_HINT_NTA);
    } else {
        _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1);
    }
}

}  // namespace
}  // namespace hasten
