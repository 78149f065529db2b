#include "isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace hasten {
namespace {

#if defined(__x86_64__)

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers leaf(unsigned number, unsigned sub) {
    Registers r;
    if (!__get_cpuid_count(number, sub, &r.a, &r.b, &r.c, &r.d)) return Registers();
    return r;
}

unsigned long long enabled_state() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

// Linux keeps the 8 KiB of tile state from processes that have not asked for it.
bool permit_tiles() {
#if defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

Isa detect() {
    const Registers one = leaf(1, 0), seven = leaf(7, 0);
    if (!bit(one.c, 27)) return GENERIC;  // OSXSAVE
    const unsigned long long state = enabled_state();
    const bool avx_state = (state & 0x6) == 0x6, avx512_state = (state & 0xe6) == 0xe6, tile_state = (state & 0x60000) == 0x60000;
    const bool avx2 = avx_state && bit(one.c, 12) && bit(one.c, 28) && bit(seven.b, 5) && bit(one.c, 29);
    if (!avx2) return GENERIC;
    const bool avx512 = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    if (!avx512 || !avx512_state || !bit(seven.c, 11)) return AVX2;
#if defined(HASTEN_EMULATED_TILES)
    return AMX;
#endif
    const bool tiles = bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25);  // bf16, tiles, int8
    return tiles && tile_state && permit_tiles() ? AMX : VNNI;
}

bool is_intel() {
    const Registers vendor = leaf(0, 0);  // "Genu", "ineI", "ntel"
    return vendor.b == 0x756e6547 && vendor.d == 0x49656e69 && vendor.c == 0x6c65746e;
}

#else

Isa detect() { return GENERIC; }
bool is_intel() { return false; }

#endif

std::atomic<int> chosen{-1};

}  // namespace

const bool FETCHES_PAST_CACHES = !is_intel();

Isa best_isa() {
    static const Isa found = detect();
    return found;
}

Isa current_isa() {
    const int level = chosen.load(std::memory_order_relaxed);
    return level < 0 ? best_isa() : static_cast<Isa>(level);
}

bool set_isa(int level) {
    if (level < GENERIC || level > best_isa()) return false;
    chosen.store(level, std::memory_order_relaxed);
    return true;
}

}  // namespace hasten
