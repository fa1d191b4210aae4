// Random weights and rows for the tests and the bench of the kernels.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "../src/kernels.h"

namespace fixture {

// Small, seeded and the same everywhere: xorshift64*.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1dull;
    }
    int32_t between(int32_t low, int32_t high) {
        return low + static_cast<int32_t>((next() >> 33) % static_cast<uint64_t>(high - low + 1));
    }
    float uniform(float low, float high) {
        return low + (high - low) * static_cast<float>(next() >> 40) * (1.0f / 16777216.0f);
    }
    std::vector<float> floats(size_t count, float low, float high) {
        std::vector<float> values(count);
        for (float& value : values) value = uniform(low, high);
        return values;
    }

private:
    uint64_t state_;
};

template <class T>
class Aligned {
public:
    explicit Aligned(size_t count)
        : count_(count), data_(static_cast<T*>(::operator new[](count * sizeof(T) + 1, std::align_val_t(64)))) {
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    ~Aligned() { ::operator delete[](data_, std::align_val_t(64)); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    T* data() const { return data_; }
    size_t size() const { return count_; }
    T& operator[](size_t i) const { return data_[i]; }

private:
    size_t count_;
    T* data_;
};

inline int32_t round_up(int32_t value, int32_t step) { return (value + step - 1) / step * step; }

// Packed as the contract asks.
class Packed {
public:
    Packed(Random& random, int32_t n, int32_t k)
        : n_pad_(round_up(n, 16)), k_pad_(round_up(k, 64)), codes_(size_of()), scales_(pad()), bias_(pad()),
          sums_(pad()) {
        for (int32_t o = 0; o < n; ++o) {
            const size_t panel = static_cast<size_t>(o / 16) * static_cast<size_t>(k_pad_) * 16;
            for (int32_t i = 0; i < k; ++i) {
                const auto code = static_cast<int8_t>(random.between(-128, 127));
                codes_[panel + static_cast<size_t>(i / 4 * 64 + o % 16 * 4 + i % 4)] = code;
                sums_[static_cast<size_t>(o)] += code;
            }
            scales_[static_cast<size_t>(o)] = random.uniform(0.0005f, 0.002f);
            bias_[static_cast<size_t>(o)] = random.uniform(-0.5f, 0.5f);
        }
        weights_ = {codes_.data(), scales_.data(), sums_.data(), bias_.data(), n, k, n_pad_, k_pad_};
    }
    const ingot::Weights8& weights() const { return weights_; }

private:
    size_t pad() const { return static_cast<size_t>(n_pad_); }
    size_t size_of() const { return pad() * static_cast<size_t>(k_pad_); }
    int32_t n_pad_, k_pad_;
    Aligned<int8_t> codes_;
    Aligned<float> scales_, bias_;
    Aligned<int32_t> sums_;
    ingot::Weights8 weights_;
};

}  // namespace fixture
