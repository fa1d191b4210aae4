// The threads of an encoder. The calling thread is worker 0; the others sleep between calls.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "cpus.h"
#include "wait.h"

namespace ingot {

class ThreadPool {
  public:
    // What every worker runs; it may meet the others at the barrier and must not throw.
    using Task = void (*)(void* context, int worker, Barrier& barrier);
    struct Crew;

    explicit ThreadPool(int threads);  // 0: default_threads(); never more than the affinity mask holds
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }

    // A caller's turn: others wait until it is over. Binds the calling thread to the first core of the pool.
    class Turn {
      public:
        explicit Turn(ThreadPool& pool);
        void run(Task task, void* context);
        int threads() const;

      private:
        Crew& crew_;
        std::lock_guard<std::mutex> lock_;
        Pinned pinned_;
    };

  private:
    Crew& crew_of_this_process();
    int first_cpu() const { return threads_ > 1 && !cpus_.empty() ? cpus_[0] : -1; }

    int threads_;
    std::vector<int> cpus_;
    std::atomic<Crew*> crew_{nullptr};
};

}  // namespace ingot
