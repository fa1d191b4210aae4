// What the tests of the kernels share: counting, comparing, and the loop over the sets.
#pragma once
#include <cmath>
#include <cstdio>
#include <string>

#include "kernels_fixture.h"

namespace checked {

using fixture::Random;
using ingot::Kernels;

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

// A layer of random rows, and what follows its product.
template <class Job>
struct Layer {
    Layer(Random& random, int32_t rows, int32_t n)
        : times(random.floats(area(rows, n), -1, 1)), plus(random.floats(area(rows, n), -1, 1)),
          before(area(rows, n) + 16, 5.5f) {
        job.rows = rows;
        job.last = n;
        if (random.between(0, 2) == 0) job.times = times.data();
        if (random.between(0, 1)) job.plus = random.between(0, 1) ? plus.data() : before.data();
        job.ld_times = job.ld_plus = job.ld_out = n;
    }
    virtual ~Layer() = default;
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;
    // The job with the input of rows from `first` on, and with the input that the reference reads.
    virtual Job from_row(Job what, int32_t first) const = 0;
    virtual Job for_reference(Job what) const { return what; }
    std::vector<float> run(void (*linear)(const Job&), const Job& what) const {
        std::vector<float> out = before;
        Job copy = what;
        copy.out = out.data();
        if (copy.plus == before.data()) copy.plus = out.data();  // the residual is the output itself
        linear(copy);
        return out;
    }
    std::vector<float> times, plus, before;
    Job job = {};
};

// Some columns of a layer: near the reference, and nothing else is written. Fewer rows or columns have the same bits.
template <class Job>
void check_layer(Layer<Job>& layer, void (*Kernels::*linear)(const Job&), const Kernels& set, const Kernels& reference,
                 Random& random, double bound, const std::string& name) {
    Job& job = layer.job;
    const int32_t rows = job.rows, n = job.last;
    job.first = random.between(0, (n - 1) / 16) * 16;
    job.last = random.between(0, 1) ? n : random.between(job.first, n);
    job.activation = static_cast<ingot::Activation>(random.between(0, 5));
    const std::vector<float> got = layer.run(set.*linear, job);
    const std::vector<float> expected = layer.run(reference.*linear, layer.for_reference(job));
    const auto what = [&](const char* of, double error = 0.0) {
        return about(name.c_str(), set, {n, rows, job.first, job.last, static_cast<int>(job.activation)}, error) + of;
    };
    const double error = difference(got, expected);
    check(error < bound, what(" (n, rows, first, last, activation)", error));
    bool outside = true;
    for (size_t i = 0; i < got.size(); ++i) {
        const int32_t c = static_cast<int32_t>(i % area(n, 1));
        if (c < job.first || c >= job.last || i >= area(rows, n)) outside = outside && got[i] == layer.before[i];
    }
    check(outside, what(" writes its columns only"));
    if (job.plus == layer.before.data()) job.plus = layer.plus.data();
    const std::vector<float> all = layer.run(set.*linear, job);
    for (int32_t r = 0; r < rows; r += random.between(1, 9)) {
        Job some = layer.from_row(job, r);
        some.rows = random.between(1, rows - r);
        if (some.times) some.times += area(r, n);
        if (some.plus) some.plus += area(r, n);
        const std::vector<float> fewer = layer.run(set.*linear, some);
        check(std::memcmp(fewer.data(), all.data() + area(r, n), area(some.rows, n) * sizeof(float)) == 0,
              what(", fewer rows"));
    }
    Job left = job, right = job;
    left.last = right.first = job.first + (job.last - job.first) / 32 * 16;
    std::vector<float> halves = layer.run(set.*linear, left);
    const std::vector<float> other = layer.run(set.*linear, right);
    for (size_t i = 0; i < area(rows, n); ++i)
        if (static_cast<int32_t>(i % area(n, 1)) >= right.first) halves[i] = other[i];
    check(same_bits(halves, all), what(", columns in two parts"));
}

#if defined(INGOT_EMULATED_TILES)
}  // namespace checked
namespace ingot {
extern const Kernels kernels_amx;
}
namespace checked {
// Only the set whose tiles are emulated; all else of it must be granted.
inline const ingot::Kernels* set_of(const char* name) {
    const bool is_amx = std::strcmp(name, "amx") == 0;
    return is_amx && ingot::kernels_of("avx512-vnni-bf16") ? &ingot::kernels_amx : nullptr;
}
#else
inline const ingot::Kernels* set_of(const char* name) { return ingot::kernels_of(name); }
#endif

// test(set, reference, cases, seed) for every granted set; arguments are [cases per function] [seed]. The exit code.
template <class Test>
int every_set(int argc, char** argv, Test test) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    const ingot::Kernels& reference = *ingot::kernels_of("scalar");
    for (const char* name : names) {
        const ingot::Kernels* set = set_of(name);
        std::printf("%s: %s\n", name, set ? "granted" : "not in this build or not granted by this machine");
        if (set) test(*set, reference, cases, seed);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

}  // namespace checked
