// Choosing the level at which a sketch is made.
#include "sketch.h"

#include "calls.h"
#include "threads.h"

using namespace hasten;

namespace {

enum Status { OK = 0, BAD_SIZE = 1 };

const std::int64_t PAIRS_TOGETHER = 4;

void (*kernel_for(Isa isa))(const SketchWork&, std::int64_t, std::int64_t) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::sketch_pairs;
    if (isa == AVX2) return avx2::sketch_pairs;
#endif
    (void)isa;
    return generic::sketch_pairs;
}

}  // namespace

// The arguments of SketchWork.
EXPORT int hst_sketch_pack(const std::int8_t* packed, const float* scale, std::int64_t outputs, std::int64_t inputs, std::int64_t block,
                           std::uint8_t* rough, std::int32_t* sums, float* error) {
    if (outputs < 1 || inputs < 1 || inputs > MOST_INPUTS || block < 1) return BAD_SIZE;
    const SketchWork work = {packed, scale, outputs, inputs, block, rough, sums, error};
    auto* kernel = kernel_for(current_isa());
    auto body = [&](std::int64_t first, std::int64_t last) { kernel(work, first, last); };
    parallel(pairs_of(outputs), PAIRS_TOGETHER, body);
    return OK;
}
