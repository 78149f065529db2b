// Attention of rows over a paged pool, with trees.
//
// A segment is one sequence: `chain` rows that follow `context` positions in the pool, then tree nodes. Virtual index v of a segment
// lives in block table[v / 64] at offset v % 64. Chain row i stands at position context + i, which is also its virtual index; a node
// of depth D stands at position context + chain - 1 + D and sees, behind the chain, the virtual indices of its path.
//
// What a row computes depends on its query and on the keys and values by *position* only: scores are sums over head_dim in order;
// positions are worked in splits of 512, each with its own maximum; sums over a split's weights are 16 lanes by position mod 16 and
// one tree; sums of values go by position; splits are merged in order. Where a key lies, who else is in the call, which rows share a
// loop and which thread does what leave no trace, because weights of unseen positions are exactly 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace hasten {

const std::int64_t TILE_KEYS = 64, SPLIT_KEYS = 512, UNIT_QUERIES = 96;

struct Cache8;
struct Queries8;
struct Products8;

struct AttentionWork {
    const float* query;        // [rows][heads][head_dim]
    const void* keys;          // [blocks][kv_heads][head_dim][64]
    const void* values;        // [blocks][kv_heads][64][head_dim]
    const std::int32_t* starts;    // [segments + 1] row borders
    const std::int32_t* contexts;  // [segments]
    const std::int32_t* chains;    // [segments]
    const std::int32_t* tables;    // [segments][table_stride]
    const std::int32_t* depths;    // [rows], 0 for chain rows
    const std::int32_t* paths;     // [rows][path_stride]
    std::int64_t table_stride, path_stride, segments, heads, kv_heads, head_dim;
    std::int64_t window;       // a row at p sees positions > p - window; 0: all
    float scale, softcap;      // scores are q.k * scale, then softcap * tanh(score / softcap) unless softcap is 0
    PoolElement element;       // of the pool
    float* out;                // [rows][heads * head_dim]
    const Cache8* cache;       // an int8 pool with its queries (attention8.h) instead of `query`, `keys` and `values`; or null
    const Queries8* queries;
    const Products8* products;  // filled in by attend
};

// Some queries of one segment and one kv head. Query i of a segment is its row i / group, head kv_head * group + i % group.
struct AttentionUnit {
    std::int64_t segment, kv_head, first, count;
    std::int64_t first_split, last_split;
};

// What a split (or several, merged) gives: per query the maximum score, the sum of weights and the weighted values.
struct AttentionPart {
    float* top;     // [count]
    float* total;   // [count]
    float* values;  // [count][head_dim]
};

#define DECLARE(level)                                                                                                       \
    namespace level {                                                                                                        \
    void attend_split(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room); \
    void merge_parts(std::int64_t count, std::int64_t dim, AttentionPart into, AttentionPart from);                          \
    void finish_unit(const AttentionWork& work, const AttentionUnit& unit, AttentionPart part);                              \
    }
DECLARE(generic)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

// The same with AMX, for such pools as attends_amx takes.
bool attends_amx(PoolElement element, std::int64_t head_dim);
void attend_split_amx(const AttentionWork& work, const AttentionUnit& unit, std::int64_t split, AttentionPart part, float* room);

// Floats of `room` that attend_split needs where a segment has at most `rows` rows.
std::int64_t attention_room(std::int64_t head_dim, std::int64_t rows);
std::int64_t attention_room_amx(std::int64_t head_dim, std::int64_t rows);

// False when there is no memory.
bool attend(const AttentionWork& work);

}  // namespace hasten
