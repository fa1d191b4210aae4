#include "cpus.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace ingot {
namespace {

constexpr int kMostCpus = 8192;

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

#if defined(__linux__)
// The lowest number among a core's hardware threads names the core.
int physical_core(int cpu) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::istringstream siblings(first_line(base + "thread_siblings_list"));
    int lowest = cpu;
    return siblings >> lowest ? lowest : cpu;
}

// Cores' worth of time per period in "quota period", or 0 for no limit.
double quota_of(const std::string& text) {
    std::istringstream words(text);
    double quota = 0, period = 0;
    return words >> quota >> period && quota > 0 && period > 0 ? quota / period : 0;
}

double smaller_limit(double a, double b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// Version 2 lays limits on every folder from the process's own up to the root; version 1 on one.
double control_group_limit() {
    double limit = quota_of(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") + " " +
                            first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        if (line.rfind("0::", 0) != 0) continue;
        std::string path = line.substr(3);
        while (true) {
            limit = smaller_limit(limit, quota_of(first_line("/sys/fs/cgroup" + path + "/cpu.max")));
            const size_t slash = path.rfind('/');
            if (slash == std::string::npos) break;
            path.resize(slash);
        }
    }
    return limit;
}

std::vector<int> mask_of_this_thread() {
    alignas(64) unsigned char mask[kMostCpus / 8] = {};
    if (sched_getaffinity(0, sizeof mask, reinterpret_cast<cpu_set_t*>(mask)) != 0) return {};
    std::vector<int> cpus;
    for (int cpu = 0; cpu < kMostCpus; ++cpu) {
        if (mask[cpu / 8] >> (cpu % 8) & 1) cpus.push_back(cpu);
    }
    return cpus;
}
#else
int physical_core(int cpu) { return cpu; }
double control_group_limit() { return 0; }
std::vector<int> mask_of_this_thread() { return {}; }
#endif

// How many pools of this process use each core. Atomics and no lock: a fork at any moment leaves them usable.
std::atomic<int> claims[kMostCpus];

}  // namespace

std::vector<int> granted_cpus() {
    std::vector<std::pair<int, int>> ranked;  // (how many of its core came before, number)
    std::map<int, int> seen;
    for (int cpu : mask_of_this_thread()) ranked.emplace_back(seen[physical_core(cpu)]++, cpu);
    std::sort(ranked.begin(), ranked.end());
    std::vector<int> cpus;
    for (const auto& [rank, cpu] : ranked) cpus.push_back(cpu);
    return cpus;
}

int most_threads() {
    const int granted = int(mask_of_this_thread().size());
    return granted > 0 ? granted : std::max(1, int(std::thread::hardware_concurrency()));
}

int default_threads() {
    std::map<int, int> cores;
    for (int cpu : mask_of_this_thread()) cores[physical_core(cpu)] = 1;
    int threads = cores.empty() ? most_threads() : int(cores.size());
    const double limit = control_group_limit();
    if (limit > 0) threads = std::min(threads, int(std::ceil(limit)));
    return std::max(1, threads);
}

std::vector<int> claim_cpus(int count) {
    std::vector<int> cpus = granted_cpus();
    std::vector<std::pair<int, int>> ranked;  // (pools on it, place in the list)
    for (size_t place = 0; place < cpus.size(); ++place) ranked.emplace_back(claims[cpus[place]], int(place));
    std::sort(ranked.begin(), ranked.end());
    if (count < int(ranked.size())) ranked.resize(size_t(count));
    std::vector<int> taken;
    for (const auto& [pools, place] : ranked) taken.push_back(cpus[size_t(place)]);
    for (int cpu : taken) ++claims[cpu];
    return taken;
}

void release_cpus(const std::vector<int>& cpus) {
    for (int cpu : cpus) --claims[cpu];
}

#if defined(__linux__)
Pinned::Pinned(int cpu) {
    if (cpu < 0 || cpu >= kMostCpus) return;
    static_assert(sizeof before_ == kMostCpus / 8, "one bit per core");
    std::fill(std::begin(before_), std::end(before_), 0);
    if (sched_getaffinity(0, sizeof before_, reinterpret_cast<cpu_set_t*>(before_)) != 0) return;
    if ((before_[cpu / 8] >> (cpu % 8) & 1) == 0) return;
    alignas(64) unsigned char one[kMostCpus / 8] = {};
    one[cpu / 8] = static_cast<unsigned char>(1u << (cpu % 8));
    bound_ = sched_setaffinity(0, sizeof one, reinterpret_cast<cpu_set_t*>(one)) == 0;
}

Pinned::~Pinned() {
    if (bound_) sched_setaffinity(0, sizeof before_, reinterpret_cast<cpu_set_t*>(before_));
}
#else
Pinned::Pinned(int) {}
Pinned::~Pinned() = default;
#endif

}  // namespace ingot
