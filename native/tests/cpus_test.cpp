// Which cores a pool takes, on machines that are only described here.
#include <cstdio>

#include "cpus.h"

namespace {

int failed = 0;

void check(const char* what, const std::vector<int>& found, const std::vector<int>& expected) {
    if (found == expected) return;
    ++failed;
    std::printf("FAILED: %s; got", what);
    for (int cpu : found) std::printf(" %d", cpu);
    std::printf("\n");
}

// Two nodes of two cores, each with two hardware threads; cores are numbered across the nodes by turns.
std::vector<ingot::Place> machine(const std::vector<int>& pools = std::vector<int>(8, 0)) {
    std::vector<ingot::Place> places;
    for (int cpu = 0; cpu < 8; ++cpu) places.push_back({cpu, cpu / 4, cpu % 2, pools[size_t(cpu)]});
    return places;
}

}  // namespace

int main() {
    using ingot::choose_cpus;
    check("one thread takes the first core", choose_cpus(machine(), 1), {0});
    check("two threads stay in one node", choose_cpus(machine(), 2), {0, 2});
    check("a second pool takes the other node", choose_cpus(machine({1, 0, 1, 0, 0, 0, 0, 0}), 2), {1, 3});
    check("nodes are filled one after the other", choose_cpus(machine(), 3), {0, 2, 1});
    check("all cores come before any sibling", choose_cpus(machine(), 4), {0, 2, 1, 3});
    check("siblings come last", choose_cpus(machine(), 6), {0, 2, 1, 3, 4, 6});
    check("an idle core far away is better than a shared one", choose_cpus(machine({1, 1, 0, 0, 0, 0, 0, 0}), 2), {2, 3});
    check("a busy node is left to its pool", choose_cpus(machine({2, 1, 2, 1, 0, 0, 0, 0}), 2), {1, 3});
    check("more than there are is all there are", choose_cpus(machine(), 99), {0, 2, 1, 3, 4, 6, 5, 7});
    check("nothing is asked for", choose_cpus(machine(), 0), {});
    check("a system that names no cores", choose_cpus({}, 2), {});
    if (failed == 0) std::printf("cpus: all checks passed\n");
    return failed == 0 ? 0 : 1;
}
