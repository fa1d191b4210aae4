// What the tests of the kernels share: counting, comparing, and the loop over the sets.
#pragma once
#include <cmath>
#include <cstdio>
#include <string>

#include "kernels_fixture.h"

namespace checked {

using fixture::Random;

const char* const names[] = {"scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-vnni-bf16", "amx"};
inline int passed = 0, failed = 0;

inline void check(bool holds, const std::string& what) {
    holds ? ++passed : ++failed;
    if (!holds && failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

inline size_t area(int64_t a, int64_t b) { return static_cast<size_t>(a * b); }

// Floats in a larger array whose rest must stay as it was.
class Guarded {
public:
    Guarded(int32_t rows, int32_t columns, Random& random)
        : rows_(rows), columns_(columns), ld_(columns + random.between(0, 9)),
          values_(area(rows, ld_) + 2 * margin, mark) {
        // The last row ends with its last column: what lies beyond is not the kernel's to read either.
        values_.resize(values_.size() - (rows > 0 ? static_cast<size_t>(ld_ - columns) : 0));
    }
    float* data() { return values_.data() + margin; }
    int64_t ld() const { return ld_; }
    float& at(int32_t r, int32_t c) { return data()[r * ld_ + c]; }
    void fill(Random& random, float low, float high) {
        for (int32_t r = 0; r < rows_; ++r)
            for (int32_t c = 0; c < columns_; ++c) at(r, c) = random.uniform(low, high);
    }
    // Nothing outside columns [first, last) was written.
    bool intact(int32_t first, int32_t last) const {
        for (size_t i = 0; i < values_.size(); ++i) {
            const int64_t place = static_cast<int64_t>(i) - static_cast<int64_t>(margin);
            const bool inside = place >= 0 && place < rows_ * ld_ && place % ld_ >= first && place % ld_ < last;
            if (!inside && values_[i] != mark) return false;
        }
        return true;
    }

private:
    static constexpr size_t margin = 32;
    static constexpr float mark = -77.25f;
    int32_t rows_, columns_;
    int64_t ld_;
    std::vector<float> values_;
};

// Largest difference relative to the largest value of the reference (or to 1); NaN must meet NaN.
inline double difference(const std::vector<float>& got, const std::vector<float>& expected) {
    double most = 0.0, scale = 1.0;
    for (size_t i = 0; i < got.size(); ++i) {
        if (std::isnan(got[i]) != std::isnan(expected[i])) return INFINITY;
        if (std::isnan(got[i]) || got[i] == expected[i]) continue;
        most = std::fmax(most, std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
        scale = std::fmax(scale, std::fabs(static_cast<double>(expected[i])));
    }
    return most / scale;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline std::string about(const char* what, const ingot::Kernels& set, std::initializer_list<int> numbers,
                         double error = 0.0) {
    std::string text = std::string(set.name) + " " + what;
    for (const int number : numbers) text += " " + std::to_string(number);
    char tail[40];
    std::snprintf(tail, sizeof tail, " error %.3g", error);
    return text + tail;
}

// test(set, reference, cases, seed) for every granted set; arguments are [cases per function] [seed]. The exit code.
template <class Test>
int every_set(int argc, char** argv, Test test) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    const ingot::Kernels& reference = *ingot::kernels_of("scalar");
    for (const char* name : names) {
        const ingot::Kernels* set = ingot::kernels_of(name);
        std::printf("%s: %s\n", name, set ? "granted" : "not in this build or not granted by this machine");
        if (set) test(*set, reference, cases, seed);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

}  // namespace checked
