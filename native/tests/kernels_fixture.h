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

// Four-bit weights with groups, packed as the contract asks; what they were packed from stays for a look.
class Packed4 {
public:
    Packed4(Random& random, int32_t n, int32_t k, int32_t group)
        : n_pad_(round_up(n, 16)), k_(k), groups_(k / group), codes_(area(n_pad_, k / 2)), scales_(area(n_pad_, 1)),
          bias_(area(n_pad_, 1)), ratios_(area(n_pad_, groups_)) {
        std::memset(codes_.data(), 0x88, codes_.size());
        for (int32_t o = 0; o < n; ++o) {
            for (int32_t i = 0; i < k; ++i) set_code(o, i, random.between(0, 15));
            for (int32_t g = 0; g < groups_; ++g) ratios_[ratio_at(o, g)] = half(random.between(0, 2048));
            scales_[static_cast<size_t>(o)] = random.uniform(0.0005f, 0.002f);
            bias_[static_cast<size_t>(o)] = random.uniform(-0.5f, 0.5f);
        }
        weights_ = {codes_.data(), ratios_.data(), scales_.data(), bias_.data(), n, k, n_pad_, group};
    }
    const ingot::Weights4& weights() const { return weights_; }
    int32_t code(int32_t o, int32_t i) const {
        const int32_t byte = codes_[code_at(o, i)];
        return (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    }
    double ratio(int32_t o, int32_t g) const { return value(ratios_[ratio_at(o, g)]); }

private:
    static size_t area(int32_t a, int32_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }
    // Some halves: the subnormal ones, and those from 0.5 to 1.
    static uint16_t half(int32_t parts) {
        if (parts < 1024) return static_cast<uint16_t>(parts);
        return static_cast<uint16_t>(parts == 2048 ? 0x3c00 : 0x3800 + (parts - 1024));
    }
    static double value(uint16_t half) {
        if (half < 1024) return half / 16777216.0;
        return half == 0x3c00 ? 1.0 : (half - 0x3800 + 1024) / 2048.0;
    }
    size_t code_at(int32_t o, int32_t i) const {
        return area(o / 16, k_ / 8 * 64) + static_cast<size_t>(i / 8 * 64 + o % 16 * 4 + i % 4);
    }
    size_t ratio_at(int32_t o, int32_t g) const { return area(o / 16 * groups_ + g, 16) + static_cast<size_t>(o % 16); }
    void set_code(int32_t o, int32_t i, int32_t stored) {
        uint8_t& byte = codes_[code_at(o, i)];
        byte = static_cast<uint8_t>(i % 8 < 4 ? (byte & 0xf0) | stored : (byte & 0x0f) | stored << 4);
    }
    int32_t n_pad_, k_, groups_;
    Aligned<uint8_t> codes_;
    Aligned<float> scales_, bias_;
    Aligned<uint16_t> ratios_;
    ingot::Weights4 weights_;
};

// Weights in bf16, packed as the contract asks.
class Packed16 {
public:
    Packed16(Random& random, int32_t n, int32_t k)
        : n_pad_(round_up(n, 16)), k_pad_(round_up(k, 32)), values_(static_cast<size_t>(n_pad_) * k_pad()),
          bias_(static_cast<size_t>(n_pad_)) {
        for (int32_t o = 0; o < n; ++o) {
            for (int32_t i = 0; i < k; ++i) values_[at(o, i)] = any(random);
            bias_[static_cast<size_t>(o)] = random.uniform(-0.5f, 0.5f);
        }
        weights_ = {values_.data(), bias_.data(), n, k, n_pad_, k_pad_};
    }
    const ingot::Weights16& weights() const { return weights_; }
    float value(int32_t o, int32_t i) const { return widened(values_[at(o, i)]); }
    static float widened(uint16_t value) {
        const uint32_t bits = static_cast<uint32_t>(value) << 16;
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    }

private:
    // Of either sign, and of sizes from 2^-15 to 2; now and then zero.
    static uint16_t any(Random& random) {
        if (random.between(0, 20) == 0) return 0;
        return static_cast<uint16_t>(random.between(0, 1) << 15 | random.between(112, 127) << 7 | random.between(0, 127));
    }
    size_t k_pad() const { return static_cast<size_t>(k_pad_); }
    size_t at(int32_t o, int32_t i) const {
        return static_cast<size_t>(o / 16 * 16) * k_pad() + static_cast<size_t>(i / 2 * 32 + o % 16 * 2 + i % 2);
    }
    int32_t n_pad_, k_pad_;
    Aligned<uint16_t> values_;
    Aligned<float> bias_;
    ingot::Weights16 weights_;
};

}  // namespace fixture
