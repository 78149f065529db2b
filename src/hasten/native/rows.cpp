// Choice of level and sharing of rows among threads.
#include "rows.h"

#include <atomic>

#include "threads.h"

namespace hasten {
namespace {

// Floats below which a second thread costs about as much as it brings.
const std::int64_t WORTH_SHARING = 512;
const std::int64_t TILE_ROWS = 64;         // of a tile of keys
const std::int64_t LEAST_SHARED = 1 << 12;  // floats of a step that are turned by more than one thread

struct RowFunctions {
    MakeFunction make;
    PutFunction put;
};

RowFunctions row_functions(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return {avx512::make_part, avx512::put_part};
    if (isa == AVX2) return {avx2::make_part, avx2::put_part};
#endif
    (void)isa;
    return {generic::make_part, generic::put_part};
}

struct RotaryFunctions {
    TurnFunction turn;
    WriteFunction write;
};

RotaryFunctions rotary_functions(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return {avx512::turn_queries, avx512::write_keys};
    if (isa == AVX2) return {avx2::turn_queries, avx2::write_keys};
#endif
    (void)isa;
    return {generic::turn_queries, generic::write_keys};
}

bool make_whole_rows(const RowWork& work, const RowFunctions& functions, std::int64_t grain) {
    std::atomic<bool> enough{true};
    auto body = [&](std::int64_t begin, std::int64_t end) {
        auto* room = static_cast<float*>(scratch(SCRATCH_FLOATS, static_cast<std::size_t>(work.inputs) * 4));
        if (room == nullptr) {
            enough = false;
            return;
        }
        for (std::int64_t row = begin; row < end; ++row) {
            Extent extent;
            float* made = work.codes == nullptr && work.block <= 1 ? work.out + row * work.inputs : room;
            functions.make(work, row, 0, work.inputs, made, &extent);
            functions.put(work, row, 0, work.inputs, made, &extent, 1);
        }
    };
    parallel(work.rows, grain, body);
    return enough;
}

// Few rows: threads make parts of them, and round these once all are known.
bool make_cut_rows(const RowWork& work, const RowFunctions& functions, std::int64_t parts, std::int64_t grain) {
    const std::int64_t units = work.rows * parts, unit = work.block > LANES_OF_ROWS ? work.block : LANES_OF_ROWS;
    auto* made = static_cast<float*>(scratch(SCRATCH_FLOATS, static_cast<std::size_t>(work.rows * work.inputs) * 4 + static_cast<std::size_t>(units) * sizeof(Extent)));
    if (made == nullptr) return false;
    auto* extents = reinterpret_cast<Extent*>(made + work.rows * work.inputs);
    const std::int64_t blocks = (work.inputs + unit - 1) / unit;
    auto border = [&](std::int64_t part) { return part == parts ? work.inputs : blocks * part / parts * unit; };
    auto make = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            functions.make(work, i / parts, border(i % parts), border(i % parts + 1), made + i / parts * work.inputs, extents + i);
        }
    };
    auto put = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t row = i / parts;
            functions.put(work, row, border(i % parts), border(i % parts + 1), made + row * work.inputs, extents + row * parts, parts);
        }
    };
    parallel(units, grain, make);
    parallel(units, grain, put);
    return true;
}

}  // namespace

RowShares share_rows(std::int64_t rows, std::int64_t inputs) {
    const std::int64_t some = threads();
    std::int64_t parts = 1;
    if (rows < 4 * some && rows % some != 0) parts = inputs / WORTH_SHARING < some ? inputs / WORTH_SHARING : some;
    if (parts < 1) parts = 1;
    const std::int64_t grain = WORTH_SHARING * parts / inputs;
    return {parts, grain < 1 ? 1 : grain};
}

bool make_rows(const RowWork& work) {
    const RowFunctions functions = row_functions(current_isa());
    const RowShares shares = share_rows(work.rows, work.inputs);
    if (work.codes == nullptr || shares.parts == 1) return make_whole_rows(work, functions, shares.grain);
    return make_cut_rows(work, functions, shares.parts, shares.grain);
}

void rotate_and_write(const RotaryWork& work) {
    const RotaryFunctions functions = rotary_functions(current_isa());
    const std::int64_t floats = (work.heads + 2 * work.kv_heads) * work.head_dim;
    if (work.rows > TILE_ROWS) {
        auto body = [&](std::int64_t first, std::int64_t last) {
            functions.turn(work, first, last);
            for (std::int64_t head = 0; head < work.kv_heads; ++head) functions.write(work, head, first, last);
        };
        return parallel(work.rows, share_rows(work.rows, floats).grain, body);
    }
    // Keys of neighbouring rows stand side by side: one thread writes all of a head's, or two would take lines from each other.
    auto body = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t unit = first; unit < last; ++unit) {
            if (unit < work.kv_heads) {
                functions.write(work, unit, 0, work.rows);
            } else {
                functions.turn(work, unit - work.kv_heads, unit - work.kv_heads + 1);
            }
        }
    };
    const std::int64_t units = work.kv_heads + work.rows;
    parallel(units, work.rows * floats < LEAST_SHARED ? units : 1, body);
}

}  // namespace hasten
