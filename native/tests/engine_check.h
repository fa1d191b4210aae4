// What the tests of the engine share: counts of checks and allocations, the granted sets, likeness.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "ingot_native.h"

// Counts what is allocated, in every thread; the address sanitizer has an operator of its own.
inline std::atomic<int64_t> allocations{0};
#if !defined(__SANITIZE_ADDRESS__)
// Not inlined: a compiler that sees free() behind another new() believes that they do not match.
__attribute__((noinline)) void* operator new(size_t size_bytes) {
    ++allocations;
    if (void* block = std::malloc(size_bytes)) return block;
    throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* block) noexcept { std::free(block); }
__attribute__((noinline)) void operator delete(void* block, size_t) noexcept { std::free(block); }
#endif

inline int passed = 0, failed = 0;

inline void check(bool holds, const std::string& what) {
    ++(holds ? passed : failed);
    if (!holds) std::printf("FAILED: %s\n", what.c_str());
}

inline int summary() {
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

inline double cosine(const std::vector<float>& a, const std::vector<float>& b) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        ab += double(a[i]) * b[i], aa += double(a[i]) * a[i], bb += double(b[i]) * b[i];
    }
    return ab / std::sqrt(aa * bb);
}

inline std::string cap() {
    const char* name = std::getenv("INGOT_NATIVE_ISA");
    return name ? name : "";
}

// Names of the granted instruction sets; under a cap only the fastest that it leaves, as others have a run of their own.
inline std::vector<std::string> granted() {
    std::vector<std::string> sets;
    std::string names = ingot_sets();
    for (size_t from = 0, to; from < names.size(); from = to + 1) {
        to = std::min(names.find(' ', from), names.size());
        sets.push_back(names.substr(from, to - from));
    }
    if (cap().empty()) return sets;
    return {sets.back()};
}

// What ctest takes as skipped: the test is asked for on a set that this build or this machine lacks.
inline constexpr int skipped = 77;
inline bool is_cap_granted() { return cap().empty() || granted().back() == cap(); }
