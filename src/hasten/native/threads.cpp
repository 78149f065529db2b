#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace hasten {
namespace {

const int MAX_THREADS = 256;
// Long enough to bridge the Python between two kernels of a step, short enough to leave an idle process asleep.
const std::chrono::microseconds SPIN(100);

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// The units a thread still has: begin in the low half, end in the high half, so that one exchange moves both.
struct alignas(64) Share {
    std::atomic<std::uint64_t> span{0};

    void reset(std::uint64_t begin, std::uint64_t end) { span.store(end << 32 | begin, std::memory_order_relaxed); }

    bool take(std::uint64_t grain, bool from_front, std::int64_t* first, std::int64_t* last) {
        std::uint64_t now = span.load(std::memory_order_relaxed);
        for (;;) {
            const std::uint64_t begin = now & 0xffffffffu, end = now >> 32;
            if (begin >= end) return false;
            const std::uint64_t count = end - begin < grain ? end - begin : grain;
            const std::uint64_t next = from_front ? (end << 32 | (begin + count)) : ((end - count) << 32 | begin);
            if (!span.compare_exchange_weak(now, next, std::memory_order_relaxed)) continue;
            *first = static_cast<std::int64_t>(from_front ? begin : end - count);
            *last = *first + static_cast<std::int64_t>(count);
            return true;
        }
    }
};

class Pool {
   public:
    explicit Pool(int count) {
        for (; count_ < count; ++count_) {
            try {
                std::thread([this, index = count_] { serve(index); }).detach();
            } catch (const std::system_error&) {
                break;  // the system gives no more: those that are there do the work
            }
        }
    }

    int count() const { return count_; }

    void run(std::int64_t units, std::int64_t grain, RangeFunction function, void* context) {
        for (int index = 0; index < count_; ++index) shares_[index].reset(border(units, index), border(units, index + 1));
        function_ = function;
        context_ = context;
        grain_ = static_cast<std::uint64_t>(grain);
        state_.store(((state_.load(std::memory_order_relaxed) >> 32) + 1) << 32 | OPEN, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        work(0);
        // Everything is taken. Workers that have joined are still at it; those that have not come yet find the door closed, so that
        // a worker whose core is busy with another process holds nobody up.
        state_.fetch_and(~OPEN, std::memory_order_relaxed);
        for (int turn = 1; (state_.load(std::memory_order_acquire) & JOINED) != 0; ++turn) {
            relax();
            if (turn % 4096 == 0) std::this_thread::yield();  // the worker may be waiting for our core
        }
    }

    // Workers leave; the object stays, because a worker may still be looking at it.
    void retire() {
        retired_.store(true, std::memory_order_relaxed);
        state_.fetch_add(std::uint64_t(1) << 32, std::memory_order_seq_cst);
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }

   private:
    std::uint64_t border(std::int64_t units, int index) const { return static_cast<std::uint64_t>(units * index / count_); }

    void work(int index) {
        std::int64_t first = 0, last = 0;
        while (shares_[index].take(grain_, true, &first, &last)) function_(context_, first, last);
        for (int other = 1; other < count_; ++other) {
            Share& share = shares_[(index + other) % count_];
            while (share.take(grain_, false, &first, &last)) function_(context_, first, last);
        }
    }

    void serve(int index) {
        std::uint64_t seen = 0;
        for (;;) {
            std::uint64_t now = wait(seen);
            if (retired_.load(std::memory_order_relaxed)) return;
            while ((now & OPEN) != 0 && !state_.compare_exchange_weak(now, now + 1, std::memory_order_acquire)) continue;
            seen = now >> 32;
            if ((now & OPEN) == 0) continue;
            work(index);
            state_.fetch_sub(1, std::memory_order_release);
        }
    }

    // The state once its generation is another than `seen`: spins for a while, then sleeps.
    std::uint64_t wait(std::uint64_t seen) {
        const auto limit = std::chrono::steady_clock::now() + SPIN;
        for (int turn = 1;; ++turn) {
            const std::uint64_t now = state_.load(std::memory_order_acquire);
            if (now >> 32 != seen) return now;
            relax();
            if (turn % 64 == 0 && std::chrono::steady_clock::now() > limit) break;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [this, seen] { return state_.load(std::memory_order_seq_cst) >> 32 != seen; });
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        return state_.load(std::memory_order_acquire);
    }

    int count_ = 1;  // the caller, and the workers; settled before the first work
    RangeFunction function_ = nullptr;
    void* context_ = nullptr;
    std::uint64_t grain_ = 1;
    Share shares_[MAX_THREADS];
    // Generation of the work (high half), whether workers may still join it, and how many have.
    static constexpr std::uint64_t OPEN = 1u << 16, JOINED = OPEN - 1;
    alignas(64) std::atomic<std::uint64_t> state_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> retired_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

int hardware_threads() {
    const unsigned found = std::thread::hardware_concurrency();
    return found == 0 ? 1 : found > static_cast<unsigned>(MAX_THREADS) ? MAX_THREADS : static_cast<int>(found);
}

std::atomic<int> wanted{0};  // changed under `entry`
Pool* pool = nullptr;        // guarded by `entry`; never freed, so that no worker outlives it
// Held while the pool is in use. A pointer, because a forked child must be able to start with a fresh one.
std::mutex* entry = new std::mutex;

void forget_after_fork() {
    pool = nullptr;
    entry = new std::mutex;
}

struct Buffer {
    void* data = nullptr;
    std::size_t size = 0;
    ~Buffer() { std::free(data); }
};
thread_local Buffer buffers[SCRATCH_SLOTS];

}  // namespace

void parallel_for(std::int64_t units, std::int64_t grain, RangeFunction function, void* context) {
    if (units <= 0) return;
    if (units > grain && units < (std::int64_t(1) << 31)) {
        std::unique_lock<std::mutex> lock(*entry, std::try_to_lock);
        if (lock.owns_lock()) {
            if (wanted == 0) wanted = hardware_threads();
            if (wanted > 1) {
                if (pool == nullptr) {
#if defined(__unix__) || defined(__APPLE__)
                    static const int once = pthread_atfork(nullptr, nullptr, forget_after_fork);
                    (void)once;
#endif
                    pool = new Pool(wanted);
                }
                pool->run(units, grain, function, context);
                return;
            }
        }
    }
    for (std::int64_t begin = 0; begin < units; begin += grain) function(context, begin, begin + grain < units ? begin + grain : units);
}

void set_threads(int count) {
    const int bounded = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    std::lock_guard<std::mutex> lock(*entry);
    if (bounded == wanted) return;
    wanted = bounded;
    if (pool != nullptr) pool->retire();
    pool = nullptr;
}

int threads() {
    const int count = wanted.load(std::memory_order_relaxed);  // without the lock, which whoever computes holds
    return count == 0 ? hardware_threads() : count;
}

void* scratch(ScratchSlot slot, std::size_t bytes) {
    Buffer& buffer = buffers[slot];
    if (buffer.data == nullptr || buffer.size < bytes) {
        const std::size_t rounded = (bytes + bytes / 2 + 4096) / 4096 * 4096;
        std::free(buffer.data);
        buffer.data = std::aligned_alloc(64, rounded);
        buffer.size = buffer.data == nullptr ? 0 : rounded;
    }
    return buffer.data;
}

}  // namespace hasten
