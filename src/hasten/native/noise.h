// The noise that tokens are drawn with (sampling/noise.py): the same bits for a seed, position and token. Its logarithms are those of the
// C library, which may differ from Python's own in the last places: it tells which tokens may win, never which one does.
#pragma once

#include <cmath>
#include <cstdint>

namespace hasten {
namespace {

struct Noise {
    std::uint64_t key;

    Noise(std::uint64_t seed, std::int64_t position) : key(mix(mix(seed ^ 0x6E6F697365) + static_cast<std::uint64_t>(position) * STEP)) {}

    std::uint64_t bits(std::int64_t token) const { return finish(static_cast<std::uint64_t>(token) * STEP + key); }

    // -log(-log(u)), where u is the middle of the cell of (0, 1) that the bits name.
    static double of(std::uint64_t bits) {
        const double uniform = static_cast<double>((bits >> DROPPED_BITS) * 2 + 1) * 0x1p-53;
        return -std::log(-std::log(uniform));
    }

    // Bits below these have less noise than `least`, by more than rounding could make up for; some above have less, too. At least g means
    // that u lies among the upper 1 - exp(-exp(-g)), which is never more than exp(-g).
    static std::uint64_t least_bits(double least) {
        const double share = least > SLACK ? std::exp(SLACK - least) : 1.0;
        const auto cells = static_cast<std::int64_t>(share * 0x1p52) + 2;
        return cells < std::int64_t(1) << 52 ? static_cast<std::uint64_t>((std::int64_t(1) << 52) - cells) << DROPPED_BITS : 0;
    }

    // No bits up to these have more noise: never more than -log(1 - u), of which the leading ones of the bits tell the power of two.
    static double at_most(std::uint64_t bits) { return (__builtin_clzll(~bits | 1) + 2) * 0.6931471805599454; }

    static constexpr double MOST = 36.737;  // a little more than there is
    static constexpr double SLACK = 1e-6;

private:
    static const std::uint64_t STEP = 0x9E3779B97F4A7C15;
    static const int DROPPED_BITS = 12;

    static std::uint64_t finish(std::uint64_t value) {
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
        return value ^ (value >> 31);
    }

    static std::uint64_t mix(std::uint64_t value) { return finish(value + STEP); }
};

}  // namespace
}  // namespace hasten
