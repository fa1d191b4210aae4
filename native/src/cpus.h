// Which cores this process may use, and how many of them at once.
#pragma once
#include <vector>

namespace ingot {

// The cores of this thread's affinity mask: one of each physical core first, then their siblings. Empty where the
// system does not say.
std::vector<int> granted_cpus();

// Threads to use when nobody says: physical cores in the mask, not more than the control group's CPU quota.
int default_threads();

// The most that may be asked for: the cores in the mask.
int most_threads();

// Takes `count` of the granted cores, those that the fewest other pools of this process have taken.
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
