// Cutting attention into units of work and merging what they give. How it is cut changes no bit (see attention.h).
#include "attention.h"

#include <atomic>
#include <vector>

#include "attention8.h"
#include "threads.h"

namespace hasten {
namespace {

struct Level {
    void (*split)(const AttentionWork&, const AttentionUnit&, std::int64_t, AttentionPart, float*);
    void (*merge)(std::int64_t, std::int64_t, AttentionPart, AttentionPart);
    void (*finish)(const AttentionWork&, const AttentionUnit&, AttentionPart);
    std::int64_t (*room)(std::int64_t, std::int64_t);
};

Level level_for(Isa isa, const AttentionWork& work) {
#if defined(__x86_64__)
    const bool tiles = isa == AMX && attends_amx(work.element, work.head_dim);
    if (tiles) return {attend_split_amx, avx512::merge_parts, avx512::finish_unit, attention_room_amx};
    if (isa >= VNNI) return {avx512::attend_split, avx512::merge_parts, avx512::finish_unit, attention_room};
    if (isa == AVX2) return {avx2::attend_split, avx2::merge_parts, avx2::finish_unit, attention_room};
#endif
    (void)isa;
    (void)work;
    return {generic::attend_split, generic::merge_parts, generic::finish_unit, attention_room};
}

Level level8_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return {avx512::attend_split8, avx512::merge_parts, avx512::finish_unit8, attention_room8};
    if (isa == AVX2) return {avx2::attend_split8, avx2::merge_parts, avx2::finish_unit8, attention_room8};
#endif
    (void)isa;
    return {generic::attend_split8, generic::merge_parts, generic::finish_unit8, attention_room8};
}

const Products8* products_for(Isa isa) {
#if defined(__x86_64__)
    if (isa == AMX) return &products8_amx;
    if (isa == VNNI) return &avx512::products8;
    if (isa == AVX2) return &avx2::products8;
#endif
    (void)isa;
    return &generic::products8;
}

using RotaryFunction8 = void (*)(const Rotary8&, std::int64_t, std::int64_t);

RotaryFunction8 rotary8_for(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::rotary_rows8;
    if (isa == AVX2) return avx2::rotary_rows8;
#endif
    (void)isa;
    return generic::rotary_rows8;
}

std::int64_t position_of(const AttentionWork& work, std::int64_t segment, std::int64_t row) {
    const std::int64_t depth = work.depths[work.starts[segment] + row];
    return work.contexts[segment] + (depth == 0 ? row : work.chains[segment] - 1 + depth);
}

// Units of at most `most` queries.
std::vector<AttentionUnit> cut(const AttentionWork& work, std::int64_t most) {
    const std::int64_t group = work.heads / work.kv_heads;
    std::vector<AttentionUnit> units;
    for (std::int64_t segment = 0; segment < work.segments; ++segment) {
        const std::int64_t queries = (work.starts[segment + 1] - work.starts[segment]) * group;
        for (std::int64_t first = 0; first < queries; first += most) {
            const std::int64_t count = queries - first < most ? queries - first : most;
            std::int64_t low = INT64_MAX, high = 0;
            for (std::int64_t row = first / group; row <= (first + count - 1) / group; ++row) {
                const std::int64_t position = position_of(work, segment, row);
                low = position < low ? position : low;
                high = position > high ? position : high;
            }
            low = work.window > 0 && low >= work.window ? low - work.window + 1 : 0;
            for (std::int64_t head = 0; head < work.kv_heads; ++head) {
                units.push_back({segment, head, first, count, low / SPLIT_KEYS, high / SPLIT_KEYS});
            }
        }
    }
    return units;
}

// Queries a unit that even out few units among the threads; 0 where the units are as they should be. Single queries share no load of a
// key, and gain nothing.
std::int64_t evening(const std::vector<AttentionUnit>& units) {
    const std::int64_t count = static_cast<std::int64_t>(units.size()), some = threads();
    if (count >= 4 * some || count % some == 0) return 0;
    std::int64_t longest = 0;
    for (const AttentionUnit& unit : units) longest = unit.count > longest ? unit.count : longest;
    return longest < 4 ? 0 : longest < 2 * some ? 2 : (longest + some - 1) / some;
}

AttentionPart part_at(float* memory, std::int64_t count) { return {memory, memory + count, memory + 2 * count}; }

std::int64_t part_floats(std::int64_t count, std::int64_t dim) { return (count * (dim + 2) + 15) / 16 * 16; }

// Enough units for all threads: each walks its splits and merges as it goes.
bool attend_units(const AttentionWork& work, const Level& level, const std::vector<AttentionUnit>& units, std::int64_t room) {
    std::atomic<bool> enough{true};
    const std::int64_t floats = part_floats(UNIT_QUERIES, work.head_dim);
    auto body = [&](std::int64_t begin, std::int64_t end) {
        auto* memory = static_cast<float*>(scratch(SCRATCH_FLOATS, static_cast<std::size_t>(2 * floats + room) * 4));
        if (memory == nullptr) {
            enough = false;
            return;
        }
        for (std::int64_t index = begin; index < end; ++index) {
            const AttentionUnit& unit = units[static_cast<std::size_t>(index)];
            const AttentionPart all = part_at(memory, unit.count), next = part_at(memory + floats, unit.count);
            level.split(work, unit, unit.first_split, all, memory + 2 * floats);
            for (std::int64_t split = unit.first_split + 1; split <= unit.last_split; ++split) {
                level.split(work, unit, split, next, memory + 2 * floats);
                level.merge(unit.count, work.head_dim, all, next);
            }
            level.finish(work, unit, all);
        }
    };
    parallel(static_cast<std::int64_t>(units.size()), 1, body);
    return enough;
}

// Few units with long contexts: threads share the splits, and merge in order afterwards.
bool attend_splits(const AttentionWork& work, const Level& level, const std::vector<AttentionUnit>& units, std::int64_t room) {
    struct Piece {
        const AttentionUnit* unit;
        std::int64_t split;
    };
    std::atomic<bool> enough{true};
    std::vector<Piece> pieces;
    for (const AttentionUnit& unit : units) {
        for (std::int64_t split = unit.first_split; split <= unit.last_split; ++split) pieces.push_back({&unit, split});
    }
    const std::int64_t floats = part_floats(UNIT_QUERIES, work.head_dim);
    auto* parts = static_cast<float*>(scratch(SCRATCH_PARTS, pieces.size() * static_cast<std::size_t>(floats) * 4));
    if (parts == nullptr) return false;
    auto body = [&](std::int64_t begin, std::int64_t end) {
        auto* memory = static_cast<float*>(scratch(SCRATCH_FLOATS, static_cast<std::size_t>(room) * 4));
        if (memory == nullptr) {
            enough = false;
            return;
        }
        for (std::int64_t index = begin; index < end; ++index) {
            const Piece& piece = pieces[static_cast<std::size_t>(index)];
            level.split(work, *piece.unit, piece.split, part_at(parts + index * floats, piece.unit->count), memory);
        }
    };
    parallel(static_cast<std::int64_t>(pieces.size()), 1, body);
    std::int64_t index = 0;
    for (const AttentionUnit& unit : units) {
        const AttentionPart all = part_at(parts + index++ * floats, unit.count);
        for (std::int64_t split = unit.first_split + 1; split <= unit.last_split; ++split) {
            level.merge(unit.count, work.head_dim, all, part_at(parts + index++ * floats, unit.count));
        }
        level.finish(work, unit, all);
    }
    return enough;
}

}  // namespace

std::int64_t attention_room(std::int64_t head_dim, std::int64_t rows) {
    const std::int64_t queries = 6;
    return queries * (head_dim + SPLIT_KEYS + (rows / TILE_KEYS + 2) * TILE_KEYS);
}

std::int64_t attention_room8(std::int64_t head_dim, std::int64_t rows) {
    const std::int64_t tree = (rows / TILE_KEYS + 2) * TILE_KEYS, bytes = QUERIES8 * (2 * (SPLIT_KEYS + tree) + head_dim);
    return QUERIES8 * (SPLIT_KEYS + tree + 4 * head_dim) + 2 * SPLIT_KEYS + bytes / 4;
}

void rotate_and_write8(const Rotary8& work) {
    const RotaryFunction8 function = rotary8_for(current_isa());
    auto body = [&](std::int64_t first, std::int64_t last) { function(work, first, last); };
    const std::int64_t floats = (work.heads + 2 * work.kv_heads) * work.head_dim;
    const bool few = work.rows * floats < (1 << 14);
    parallel(work.rows, few ? work.rows : 1, body);
}

bool attend(const AttentionWork& asked) {
    AttentionWork work = asked;
    const bool int8 = work.cache != nullptr;
    if (int8) work.products = products_for(current_isa());
    const Level level = int8 ? level8_for(current_isa()) : level_for(current_isa(), work);
    const std::vector<AttentionUnit> units = cut(work, UNIT_QUERIES);
    std::int64_t rows = 0, splits = 0;
    for (std::int64_t segment = 0; segment < work.segments; ++segment) {
        const std::int64_t some = work.starts[segment + 1] - work.starts[segment];
        rows = some > rows ? some : rows;
    }
    for (const AttentionUnit& unit : units) splits += unit.last_split - unit.first_split + 1;
    const std::int64_t room = level.room(work.head_dim, rows), count = static_cast<std::int64_t>(units.size());
    if (splits > count && count < 4 * threads()) return attend_splits(work, level, units, room);
    const std::int64_t most = evening(units);
    return attend_units(work, level, most > 0 ? cut(work, most) : units, room);
}

}  // namespace hasten
