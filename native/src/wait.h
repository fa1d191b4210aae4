// Waiting for a number to change: spin for a moment, then sleep in the kernel.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace ingot {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number with sleepers. Both counters are sequentially consistent: either the changer sees the sleeper, or the
// kernel sees the change before it lets the sleeper sleep.
class alignas(64) Signal {
  public:
    uint32_t now() const { return value_.load(std::memory_order_acquire); }

    void change_to(uint32_t value) {
        value_.store(value, std::memory_order_seq_cst);
#if defined(__linux__)
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            uint32_t* const place = reinterpret_cast<uint32_t*>(&value_);
            syscall(SYS_futex, place, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
        }
#endif
    }

    // Returns when the number is not `old` any more.
    void wait_while(uint32_t old, std::chrono::microseconds spin) {
        const auto start = std::chrono::steady_clock::now();
        do {
            for (int i = 0; i < 32; ++i) {
                if (now() != old) return;
                pause_briefly();
            }
        } while (std::chrono::steady_clock::now() - start < spin);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (value_.load(std::memory_order_seq_cst) == old) sleep(old);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

  private:
    void sleep(uint32_t old) {
#if defined(__linux__)
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value_), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
        (void)old;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
#endif
    }

    std::atomic<uint32_t> value_{0};
    std::atomic<int32_t> sleepers_{0};
};

// Everybody waits until everybody is here. Reusable at once: the generation tells one meeting from the next.
class Barrier {
  public:
    static constexpr std::chrono::microseconds kSpin{50};

    explicit Barrier(int parties) : parties_(parties) {}

    void wait() {
        if (parties_ == 1) return;
        const uint32_t meeting = generation_.now();
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < parties_) {
            generation_.wait_while(meeting, kSpin);
            return;
        }
        arrived_.store(0, std::memory_order_relaxed);
        generation_.change_to(meeting + 1);
    }

  private:
    Signal generation_;
    alignas(64) std::atomic<int32_t> arrived_{0};
    const int32_t parties_;
};

}  // namespace ingot
