// One block of memory for everything a call computes, allocated when a call needs more than any before it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ingot {

class Arena {
  public:
    Arena() = default;
    ~Arena() { std::free(block_); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Empties the arena and makes room. The order of the steps leaves a valid arena at every moment, because a fork
    // may copy it half way.
    void reserve(size_t size_bytes) {
        used_ = 0;
        if (size_bytes <= size_) return;
        void* old = block_;
        size_ = 0;
        block_ = nullptr;
        std::free(old);
        const size_t rounded = (size_bytes + kPage - 1) / kPage * kPage;
        void* fresh = std::aligned_alloc(kPage, rounded);
        if (fresh == nullptr) throw std::bad_alloc();
        block_ = static_cast<unsigned char*>(fresh);
        size_ = rounded;
    }

    template <class T>
    T* take(size_t count) {
        unsigned char* start = block_ + used_;
        used_ += padded<T>(count);
        return reinterpret_cast<T*>(start);
    }

    // Bytes that take<T>(count) uses.
    template <class T>
    static size_t padded(size_t count) {
        return (count * sizeof(T) + 63) / 64 * 64;
    }

  private:
    static constexpr size_t kPage = 4096;
    unsigned char* block_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

// Measures a list of buffers first and takes them afterwards: one list serves both.
class Room {
  public:
    explicit Room(Arena* arena) : arena_(arena) {}  // null: only measure

    template <class T>
    void of(T*& pointer, size_t count) {
        if (arena_ == nullptr) {
            size_bytes_ += Arena::padded<T>(count);
        } else {
            pointer = arena_->take<T>(count);
        }
    }

    size_t size_bytes() const { return size_bytes_; }

  private:
    Arena* arena_;
    size_t size_bytes_ = 0;
};

// Floats from a row to the next. Rows a whole number of 1 kB apart fall into few sets of the first cache; one more
// line spreads them.
inline int64_t stride(int32_t width) {
    const int64_t padded = (int64_t(width) + 15) / 16 * 16;
    return padded % 256 == 0 ? padded + 16 : padded;
}

}  // namespace ingot
