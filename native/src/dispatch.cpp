// Which instruction sets this build has and this machine grants.
//
// Each set is one file, compiled with its own flags, and counted in by a macro given to this file alone:
//   set              file                    flags                                             macro
//   scalar           kernels_scalar.cpp      (none; any machine)                               (always)
//   avx2             kernels_avx2.cpp        -mavx2 -mfma -mf16c                               INGOT_HAVE_AVX2
//   avx2-vnni        kernels_avx2vnni.cpp    -mavx2 -mfma -mf16c -mavxvnni (GCC 11 and later)  INGOT_HAVE_AVX2_VNNI
//   avx512           kernels_avx512.cpp      -mavx512f -mavx512bw -mavx512vl -mavx512dq  (= A) INGOT_HAVE_AVX512
//   avx512-vnni      kernels_avx512vnni.cpp  A -mavx512vnni                              (= B) INGOT_HAVE_AVX512_VNNI
//   avx512-vnni-bf16 kernels_avx512bf16.cpp  B -mavx512bf16                              (= C) INGOT_HAVE_AVX512_BF16
//   amx              kernels_amx.cpp         C -mamx-tile -mamx-int8 -mamx-bf16                INGOT_HAVE_AMX
// All of them: -O3 -ffp-contract=off, never -ffast-math: a multiply and an add that the compiler may fuse in one
// block shape and not in another would make a row's bits depend on the rows beside it.
//
// Those files use no std:: templates and keep everything in unnamed namespaces: the linker keeps one copy of an
// inline function, and it could be the one compiled for instructions that this machine does not have.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(INGOT_HAVE_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ingot {

extern const Kernels kernels_scalar, kernels_avx2, kernels_avx2_vnni, kernels_avx512, kernels_avx512_vnni,
    kernels_avx512_bf16, kernels_amx;

namespace {

struct Granted {
    bool avx2 = false, avx2_vnni = false, avx512 = false, vnni = false, bf16 = false, amx = false;
};

#if defined(__x86_64__)
bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// XCR0: the register state that the operating system saves when it switches threads.
unsigned saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

Granted ask_cpu() {
    Granted cpu;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return cpu;  // OSXSAVE: without it xgetbv faults
    const bool avx_fma_f16c = bit(c, 28) && bit(c, 12) && bit(c, 29);
    const unsigned saved = saved_state();
    if (!avx_fma_f16c || (saved & 0x6u) != 0x6u || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
    const unsigned sub_leaves = a, amx_bits = d;
    cpu.avx2 = bit(b, 5);
    cpu.avx512 = cpu.avx2 && (saved & 0xe6u) == 0xe6u && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    cpu.vnni = cpu.avx512 && bit(c, 11);
    if (sub_leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        cpu.avx2_vnni = cpu.avx2 && bit(a, 4);
        cpu.bf16 = cpu.vnni && bit(a, 5);
    }
    cpu.amx = cpu.bf16 && (saved & 0x60000u) == 0x60000u && bit(amx_bits, 22) && bit(amx_bits, 24) &&
              bit(amx_bits, 25);
    return cpu;
}
#else
Granted ask_cpu() { return {}; }
#endif

// Linux grants the eight kilobytes of tile state to a process that asks; a tile instruction before that is fatal.
bool tiles_permitted() {
#if defined(INGOT_HAVE_AMX) && defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

const Granted& granted() {
    static const Granted cpu = ask_cpu();
    return cpu;
}

// Slowest first. A set that this build lacks has a null table.
struct Set {
    const char* name;
    const Kernels* table;
    bool Granted::*flag;
};

const Set sets[] = {
    {"scalar", &kernels_scalar, nullptr},
#if defined(INGOT_HAVE_AVX2)
    {"avx2", &kernels_avx2, &Granted::avx2},
#else
    {"avx2", nullptr, &Granted::avx2},
#endif
#if defined(INGOT_HAVE_AVX2_VNNI)
    {"avx2-vnni", &kernels_avx2_vnni, &Granted::avx2_vnni},
#else
    {"avx2-vnni", nullptr, &Granted::avx2_vnni},
#endif
#if defined(INGOT_HAVE_AVX512)
    {"avx512", &kernels_avx512, &Granted::avx512},
#else
    {"avx512", nullptr, &Granted::avx512},
#endif
#if defined(INGOT_HAVE_AVX512_VNNI)
    {"avx512-vnni", &kernels_avx512_vnni, &Granted::vnni},
#else
    {"avx512-vnni", nullptr, &Granted::vnni},
#endif
#if defined(INGOT_HAVE_AVX512_BF16)
    {"avx512-vnni-bf16", &kernels_avx512_bf16, &Granted::bf16},
#else
    {"avx512-vnni-bf16", nullptr, &Granted::bf16},
#endif
#if defined(INGOT_HAVE_AMX)
    {"amx", &kernels_amx, &Granted::amx},
#else
    {"amx", nullptr, &Granted::amx},
#endif
};
constexpr int set_count = sizeof(sets) / sizeof(sets[0]);

int index_of(const char* name) {
    for (int i = 0; i < set_count; ++i)
        if (std::strcmp(sets[i].name, name) == 0) return i;
    return -1;
}

// INGOT_NATIVE_ISA names the fastest set that may be used. A name that nobody knows leaves the reference only:
// whoever set it wanted less than everything.
int cap() {
    const char* name = std::getenv("INGOT_NATIVE_ISA");
    if (name == nullptr || *name == '\0') return set_count - 1;
    const int index = index_of(name);
    return index < 0 ? 0 : index;
}

const Kernels* table_of(int index) {
    if (index < 0 || index > cap()) return nullptr;
    const Set& set = sets[index];
    if (set.table == nullptr || (set.flag != nullptr && !(granted().*set.flag))) return nullptr;
    if (set.flag == &Granted::amx) {
        static const bool permitted = tiles_permitted();
        if (!permitted) return nullptr;
    }
    return set.table;
}

}  // namespace

const Kernels* kernels_of(const char* name) { return table_of(index_of(name)); }

const Kernels* best_kernels() {
    for (int i = set_count - 1; i > 0; --i)
        if (const Kernels* table = table_of(i)) return table;
    return &kernels_scalar;
}

}  // namespace ingot
