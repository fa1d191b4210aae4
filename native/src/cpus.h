// Which cores this process may use, and how many of them at once.
#pragma once
#include <vector>

namespace ingot {

// Threads to use when nobody says: physical cores in the mask, not more than the control group's CPU quota.
int default_threads();

// The most that may be asked for: the cores in the mask.
int most_threads();

// A granted core as the choice sees it.
struct Place {
    int cpu;
    int rank;   // how many hardware threads of its physical core come before it
    int node;   // of memory: threads of one node share a cache and their memory is near
    int pools;  // of this process that use it already
};

// Up to `count` of the places: physical cores before their siblings, then those that the fewest pools use, and among
// equals all from one node of memory if one has enough of them, else node after node.
std::vector<int> choose_cpus(std::vector<Place> places, int count);

// Takes `count` of the cores in this thread's affinity mask, chosen so. None where the system does not name them.
std::vector<int> claim_cpus(int count);
void release_cpus(const std::vector<int>& cpus);

// Binds the calling thread to one core while it lives, if that core is in the thread's own mask.
class Pinned {
  public:
    explicit Pinned(int cpu);  // -1: nothing
    ~Pinned();
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

  private:
    bool bound_ = false;
    alignas(64) unsigned char before_[1024];  // the mask to give back: 8192 cores
};

}  // namespace ingot
