// Sixteen floats at a time on any processor. Files that use it are compiled once for each instruction set, with HASTEN_LEVEL naming
// the namespace; everything here is private to the file, so that no wide instruction leaks into code for older processors.
//
// Every operation is the IEEE one, lane by lane, and sums over lanes have one order: results have the same bits at every level.
// Only `fused` differs: one rounding where the processor has FMA (AVX2, AVX512), two where it has not (generic).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if !defined(HASTEN_LEVEL)
#define HASTEN_LEVEL generic
#endif

namespace hasten {
namespace HASTEN_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int LANES = 16, PARTS = LANES / WIDTH;

typedef float Part __attribute__((vector_size(WIDTH * 4)));
typedef std::int32_t IntPart __attribute__((vector_size(WIDTH * 4)));
typedef float LoosePart __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef std::int32_t LooseIntPart __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Part part_load(const float* from) { return *reinterpret_cast<const LoosePart*>(from); }
INLINE void part_store(float* to, Part value) { *reinterpret_cast<LoosePart*>(to) = value; }
INLINE Part part_all(float value) {
#if defined(__AVX512F__)
    return _mm512_set1_ps(value);
#elif defined(__AVX2__)
    return _mm256_set1_ps(value);
#else
    return Part{value, value, value, value};
#endif
}

INLINE Part part_fused(Part a, Part b, Part c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE Part part_convert(IntPart value) { return __builtin_convertvector(value, Part); }

// bf16 to float is a shift.
INLINE Part part_load(const std::uint16_t* from) {
#if defined(__AVX512F__)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16));
#elif defined(__AVX2__)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 16));
#else
    const IntPart wide = {from[0], from[1], from[2], from[3]};
    return reinterpret_cast<Part>(wide << 16);
#endif
}

// A 16-bit IEEE float; to_half makes none that is infinite.
struct Half {
    std::uint16_t bits;
};

INLINE Part part_load(const Half* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    // The bits in a float's places are the number divided by 2^112, subnormal ones too; infinities and NaN get their exponent back.
    const IntPart wide = {from[0].bits, from[1].bits, from[2].bits, from[3].bits};
    const IntPart size = (wide & 0x7fff) << 13, endless = (size >= (0x7c00 << 13)) & 0x7f800000;
    const IntPart scaled = reinterpret_cast<IntPart>(reinterpret_cast<Part>(size) * part_all(0x1p112f));
    return reinterpret_cast<Part>(scaled | endless | ((wide & 0x8000) << 16));
#endif
}

struct Floats {
    Part part[PARTS];
};
struct Ints {
    IntPart part[PARTS];
};

#define EACH(i) _Pragma("GCC unroll 4") for (int i = 0; i < PARTS; ++i)

INLINE Floats load(const float* from) {
    Floats out;
    EACH(i) out.part[i] = part_load(from + i * WIDTH);
    return out;
}
INLINE void store(float* to, Floats value) { EACH(i) part_store(to + i * WIDTH, value.part[i]); }
INLINE Floats all(float value) {
    Floats out;
    EACH(i) out.part[i] = part_all(value);
    return out;
}

#define OPERATOR(symbol)                                                \
    INLINE Floats operator symbol(Floats a, Floats b) {                 \
        Floats out;                                                     \
        EACH(i) out.part[i] = a.part[i] symbol b.part[i];               \
        return out;                                                     \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
OPERATOR(/)
#undef OPERATOR

INLINE Floats fused(Floats a, Floats b, Floats c) {
    Floats out;
    EACH(i) out.part[i] = part_fused(a.part[i], b.part[i], c.part[i]);
    return out;
}

INLINE Ints bits(Floats value) {
    Ints out;
    EACH(i) out.part[i] = reinterpret_cast<IntPart>(value.part[i]);
    return out;
}
INLINE Floats magnitude(Floats value) {
    Floats out;
    EACH(i) out.part[i] = reinterpret_cast<Part>(reinterpret_cast<IntPart>(value.part[i]) & 0x7fffffff);
    return out;
}
// The low byte of each lane.
INLINE void store_bytes(void* to, Ints value) {
#if defined(__AVX512F__)
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(value.part[0])));
#elif defined(__AVX2__)
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i first = _mm256_and_si256(reinterpret_cast<__m256i>(value.part[0]), byte);
    const __m256i second = _mm256_and_si256(reinterpret_cast<__m256i>(value.part[1]), byte);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
    EACH(i) {
        for (int lane = 0; lane < WIDTH; ++lane) static_cast<std::uint8_t*>(to)[i * WIDTH + lane] = static_cast<std::uint8_t>(value.part[i][lane]);
    }
#endif
}
INLINE Ints shift_right(Ints value, int count) {
    EACH(i) value.part[i] >>= count;
    return value;
}
// `a` where `x < limit`, else `b`. NaN is never less. (The processor's minimum and maximum are this, with these operands.)
#if defined(__AVX512F__)
INLINE Part part_where_less(Part x, Part limit, Part a, Part b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OS), b, a); }
INLINE Part part_least(Part a, Part b) { return _mm512_min_ps(a, b); }
INLINE Part part_most(Part a, Part b) { return _mm512_max_ps(b, a); }
#elif defined(__AVX2__)
INLINE Part part_where_less(Part x, Part limit, Part a, Part b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OS)); }
INLINE Part part_least(Part a, Part b) { return _mm256_min_ps(a, b); }
INLINE Part part_most(Part a, Part b) { return _mm256_max_ps(b, a); }
#else
INLINE Part part_where_less(Part x, Part limit, Part a, Part b) {
    const IntPart less = x < limit;
    return reinterpret_cast<Part>((less & reinterpret_cast<IntPart>(a)) | (~less & reinterpret_cast<IntPart>(b)));
}
INLINE Part part_least(Part a, Part b) { return part_where_less(a, b, a, b); }
INLINE Part part_most(Part a, Part b) { return part_where_less(a, b, b, a); }
#endif

INLINE Floats where_less(Floats x, Floats limit, Floats a, Floats b) {
    Floats out;
    EACH(i) out.part[i] = part_where_less(x.part[i], limit.part[i], a.part[i], b.part[i]);
    return out;
}
INLINE Floats least(Floats a, Floats b) {
    Floats out;
    EACH(i) out.part[i] = part_least(a.part[i], b.part[i]);
    return out;
}
INLINE Floats most(Floats a, Floats b) {
    Floats out;
    EACH(i) out.part[i] = part_most(a.part[i], b.part[i]);
    return out;
}

// Lanes in a fixed tree: i with i + 8, then + 4, + 2, + 1.
INLINE float sum(Floats value) {
    float lane[LANES];
    store(lane, value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}
INLINE float highest(Floats value) {
    float lane[LANES];
    store(lane, value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i] < lane[i + half] ? lane[i + half] : lane[i];
    return lane[0];
}

// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even; the integer stands in the low bits.
constexpr float ROUNDER = 12582912.0f;
constexpr std::int32_t ROUNDER_BITS = 0x4b400000;

// e^x to 2 units in the last place; 0 below -87 (so that e^-inf is 0), and 1 at 0. Above 88 the result saturates near 1.6e38.
// Range reduction by ln 2 in two parts, then the Taylor polynomial of degree 7 on [-0.35, 0.35].
INLINE Floats exponential(Floats x) {
    const Floats bounded = least(most(x, all(-87.0f)), all(88.0f));
    const Floats shifted = bounded * all(1.44269504f) + all(ROUNDER);
    const Floats turns = shifted - all(ROUNDER);
    const Floats rest = (bounded - turns * all(0.693359375f)) - turns * all(-2.12194440e-4f);
    Floats value = all(1.98412698e-4f);
    value = value * rest + all(1.38888889e-3f);
    value = value * rest + all(8.33333333e-3f);
    value = value * rest + all(4.16666667e-2f);
    value = value * rest + all(1.66666667e-1f);
    value = value * rest + all(0.5f);
    value = (value * rest) * rest + rest + all(1.0f);
    const Ints steps = bits(shifted);
    EACH(i) value.part[i] = reinterpret_cast<Part>(reinterpret_cast<IntPart>(value.part[i]) + ((steps.part[i] - ROUNDER_BITS) << 23));
    return where_less(x, all(-87.0f), all(0.0f), value);
}

// tanh x: an odd polynomial near 0 (Cephes tanhf), 1 - 2 / (e^2x + 1) elsewhere.
INLINE Floats hyperbolic_tangent(Floats x) {
    const Floats size = magnitude(x), square = x * x;
    Floats near_zero = all(-5.70498872745e-3f);
    near_zero = near_zero * square + all(2.06390887954e-2f);
    near_zero = near_zero * square + all(-5.37397155531e-2f);
    near_zero = near_zero * square + all(1.33314422036e-1f);
    near_zero = near_zero * square + all(-3.33332819422e-1f);
    near_zero = (near_zero * square) * x + x;
    const Floats bounded = least(most(x, all(-15.0f)), all(15.0f));
    const Floats far = all(1.0f) - all(2.0f) / (exponential(bounded + bounded) + all(1.0f));
    return where_less(size, all(0.625f), near_zero, far);
}

// bf16 of a float, ties to even; a NaN stays one.
INLINE std::uint16_t to_bf16(float value) {
    std::uint32_t word;
    __builtin_memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((word >> 16) | 0x40u);
    return static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

// The nearest Half, ties to even; what is larger than the largest one becomes that; a NaN stays one.
INLINE Half to_half(float value) {
    const float bounded = value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
#if defined(__AVX2__)
    return {static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(bounded), _MM_FROUND_TO_NEAREST_INT)))};
#else
    std::uint32_t word;
    __builtin_memcpy(&word, &bounded, 4);
    const std::uint32_t sign = (word >> 16) & 0x8000u, size = word & 0x7fffffffu;
    if (size > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u | ((size >> 13) & 0x3ffu))};
    if (size < 0x38800000u) {  // below 2^-14 a Half counts in steps of 2^-24, as a float does from 1/2 to 1
        float small;
        __builtin_memcpy(&small, &size, 4);
        small += 0.5f;
        std::uint32_t steps;
        __builtin_memcpy(&steps, &small, 4);
        return {static_cast<std::uint16_t>(sign | (steps - 0x3f000000u))};
    }
    return {static_cast<std::uint16_t>(sign | ((size + 0xfffu + ((size >> 13) & 1u) - 0x38000000u) >> 13))};
#endif
}

// Sixteen at a time.
INLINE void store_halves(Half* to, Floats value) {
#if defined(__AVX2__)
    const Floats bounded = least(all(65504.0f), most(all(-65504.0f), value));  // in this order a NaN stays
    EACH(i) {
#if defined(__AVX512F__)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(bounded.part[i], _MM_FROUND_TO_NEAREST_INT));
#else
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * WIDTH), _mm256_cvtps_ph(bounded.part[i], _MM_FROUND_TO_NEAREST_INT));
#endif
    }
#else
    float lane[LANES];
    store(lane, value);
    for (int i = 0; i < LANES; ++i) to[i] = to_half(lane[i]);
#endif
}

}  // namespace
}  // namespace HASTEN_LEVEL
}  // namespace hasten
