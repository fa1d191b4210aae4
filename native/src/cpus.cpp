#include "cpus.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace ingot {
namespace {

constexpr int kMostCpus = 8192;
constexpr int kMostNodes = 64;

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

// The folder of a core links to the node that its memory is on.
int node_of(int cpu) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/node";
    for (int node = 0; node < kMostNodes; ++node) {
        if (access((base + std::to_string(node)).c_str(), F_OK) == 0) return node;
    }
    return 0;
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
int node_of(int) { return 0; }
double control_group_limit() { return 0; }
std::vector<int> mask_of_this_thread() { return {}; }
#endif

// How many pools of this process use each core. Atomics and no lock: a fork at any moment leaves them usable.
std::atomic<int> claims[kMostCpus];

}  // namespace

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

namespace {

// Places in the order in which they are taken when node `first` comes before the others.
std::vector<Place> ordered(std::vector<Place> places, int first) {
    std::sort(places.begin(), places.end(), [first](const Place& a, const Place& b) {
        const auto key = [first](const Place& p) { return std::make_tuple(p.rank, p.pools, p.node != first, p.node, p.cpu); };
        return key(a) < key(b);
    });
    return places;
}

// Less is better: hardware threads that share a core, pools that share one, nodes.
std::tuple<int, int, int> cost_of(const std::vector<Place>& places) {
    int rank = 0, pools = 0;
    std::set<int> nodes;
    for (const Place& place : places) rank += place.rank, pools += place.pools, nodes.insert(place.node);
    return {rank, pools, int(nodes.size())};
}

}  // namespace

std::vector<int> choose_cpus(std::vector<Place> places, int count) {
    std::set<int> nodes;
    for (const Place& place : places) nodes.insert(place.node);
    std::vector<Place> best;
    for (int node : nodes) {
        std::vector<Place> taken = ordered(places, node);
        taken.resize(std::min(taken.size(), size_t(std::max(0, count))));
        if (best.empty() || cost_of(taken) < cost_of(best)) best = taken;
    }
    std::vector<int> cpus;
    for (const Place& place : best) cpus.push_back(place.cpu);
    return cpus;
}

std::vector<int> claim_cpus(int count) {
    std::vector<Place> places;
    std::map<int, int> seen;
    for (int cpu : mask_of_this_thread()) places.push_back({cpu, seen[physical_core(cpu)]++, node_of(cpu), claims[cpu]});
    const std::vector<int> taken = choose_cpus(std::move(places), count);
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
