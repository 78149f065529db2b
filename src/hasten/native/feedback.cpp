// Rounding with feedback: the level in use, shared by the threads; and its C interface.
#include "feedback.h"

#include "threads.h"

namespace hasten {
namespace {

using FitFunction = void (*)(const GroupFit& work, std::int64_t first, std::int64_t last);
using DescentFunction = void (*)(const GroupDescent& work, std::int64_t first, std::int64_t last);

FitFunction fit_function(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::fit_outputs;
    if (isa == AVX2) return avx2::fit_outputs;
#endif
    (void)isa;
    return generic::fit_outputs;
}

DescentFunction descent_function(Isa isa) {
#if defined(__x86_64__)
    if (isa >= VNNI) return avx512::descend_outputs;
    if (isa == AVX2) return avx2::descend_outputs;
#endif
    (void)isa;
    return generic::descend_outputs;
}

// Units of sixteen outputs.
template <class Work, class Function>
void share(const Work& work, Function function) {
    auto body = [&](std::int64_t first, std::int64_t last) {
        function(work, first * 16, last * 16 < work.outputs ? last * 16 : work.outputs);
    };
    parallel((work.outputs + 15) / 16, 1, body);
}

}  // namespace

void fit_group(const GroupFit& work) { share(work, fit_function(current_isa())); }

void descend_group(const GroupDescent& work) { share(work, descent_function(current_isa())); }

}  // namespace hasten

using namespace hasten;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int hst_progressive_fit(std::int32_t bits, const float* weights, const float* targets, const float* transposed, const float* cost, std::int64_t outputs,
                            std::int64_t count, std::int32_t started, float* codes, float* values, float* scale, float* offset,
                            float* error) {
    if (bits < 3 || bits > 4 || outputs < 0 || count < 1 || count > CODE_GROUP) return 1;
    fit_group({bits, weights, targets, transposed, cost, outputs, count, started != 0, codes, values, scale, offset, error});
    return 0;
}

EXPORT int hst_progressive_descend(std::int32_t bits, const float* moments, const float* slopes, const float* scale, const float* offset, std::int64_t outputs,
                                std::int64_t count, std::int64_t passes, float* codes, float* values) {
    if (bits < 3 || bits > 4 || outputs < 0 || count < 1 || count > CODE_GROUP || passes < 0) return 1;
    descend_group({bits, moments, slopes, scale, offset, outputs, count, passes, codes, values});
    return 0;
}
