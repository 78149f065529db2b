// Choice of level and sharing of rows among threads.
#include "rows.h"

#include <atomic>

#include "threads.h"

namespace hasten {
namespace {

// Below about this many floats a second thread costs more than it brings.
const std::int64_t WORTH_SHARING = 1 << 14;

std::int64_t grain_for(std::int64_t rows, std::int64_t floats_a_row) {
    if (rows * floats_a_row < WORTH_SHARING) return rows;
    const std::int64_t some = WORTH_SHARING / 4 / (floats_a_row + 1);
    return some < 1 ? 1 : some;
}

RowFunction row_function(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::some_rows;
    if (isa == AVX2) return avx2::some_rows;
#endif
    (void)isa;
    return generic::some_rows;
}

RotaryFunction rotary_function(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::rotary_rows;
    if (isa == AVX2) return avx2::rotary_rows;
#endif
    (void)isa;
    return generic::rotary_rows;
}

}  // namespace

bool make_rows(const RowWork& work) {
    const RowFunction function = row_function(current_isa());
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t first, std::int64_t last) {
        auto* room = static_cast<float*>(scratch(SCRATCH_FLOATS, static_cast<std::size_t>(work.inputs + 16) * 4));
        if (room == nullptr) {
            enough = false;
            return;
        }
        function(work, first, last, room);
    };
    parallel(work.rows, grain_for(work.rows, work.inputs), body);
    return enough;
}

bool rotate_and_write(const RotaryWork& work) {
    const RotaryFunction function = rotary_function(current_isa());
    auto body = [&](std::int64_t first, std::int64_t last) { function(work, first, last); };
    parallel(work.rows, grain_for(work.rows, (work.heads + 2 * work.kv_heads) * work.head_dim), body);
    return true;
}

}  // namespace hasten
