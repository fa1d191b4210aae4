#include "pool.h"

#include <csignal>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>

namespace ingot {

// The threads of one process. A fork copies the memory but not the threads, so the child finds a crew whose process
// is not its own, leaves it where it lies (its lock may be held by a thread that does not exist) and hires another.
struct ThreadPool::Crew {
    struct Worker {
        Crew* crew;
        int number, cpu;
        pthread_t thread;
    };

    static constexpr std::chrono::microseconds kIdleSpin{50};  // calls come in sequences: a short wait is cheap

    Crew(int threads, const std::vector<int>& cpus) : process(getpid()), workers(size_t(threads - 1)) {
        int started = 0;
        for (Worker& worker : workers) {
            const size_t place = size_t(started) + 1;
            worker = {this, started + 1, place < cpus.size() ? cpus[place] : -1, {}};
            if (!start(worker)) break;
            ++started;
        }
        workers.resize(size_t(started));  // fewer threads than asked are slower, not wrong
        barrier.reset(new Barrier(started + 1));
        job.change_to(1);  // the workers wait for this before they touch anything else
    }

    ~Crew() {
        stop = true;
        job.change_to(job.now() + 1);
        for (Worker& worker : workers) pthread_join(worker.thread, nullptr);
    }

    static bool start(Worker& worker) {
        sigset_t all, before;
        sigfillset(&all);  // signals belong to the program's own threads
        pthread_sigmask(SIG_SETMASK, &all, &before);
        const bool is_started = pthread_create(&worker.thread, nullptr, &Crew::serve, &worker) == 0;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return is_started;
    }

    static void* serve(void* argument) {
        const Worker self = *static_cast<Worker*>(argument);
        Crew& crew = *self.crew;
        const Pinned pinned(self.cpu);
        crew.job.wait_while(0, kIdleSpin);
        for (uint32_t seen = 1;; ++seen) {
            crew.job.wait_while(seen, kIdleSpin);
            if (crew.stop) return nullptr;
            crew.task(crew.context, self.number, *crew.barrier);
            crew.barrier->wait();
        }
    }

    const pid_t process;
    std::mutex turn;
    Signal job;
    std::atomic<bool> stop{false};
    Task task = nullptr;
    void* context = nullptr;
    std::unique_ptr<Barrier> barrier;
    std::vector<Worker> workers;
};

ThreadPool::ThreadPool(int threads)
    : threads_(std::min(threads > 0 ? threads : default_threads(), most_threads())), cpus_(claim_cpus(threads_)) {
    crew_ = new Crew(threads_, cpus_);
}

ThreadPool::~ThreadPool() {
    release_cpus(cpus_);
    Crew* crew = crew_.load();
    if (crew->process == getpid()) delete crew;  // another process's crew cannot be joined
}

ThreadPool::Crew& ThreadPool::crew_of_this_process() {
    Crew* crew = crew_.load();
    if (crew->process == getpid()) return *crew;
    Crew* own = new Crew(threads_, cpus_);
    if (crew_.compare_exchange_strong(crew, own)) return *own;
    delete own;  // another thread of this process was first
    return *crew;
}

ThreadPool::Turn::Turn(ThreadPool& pool)
    : crew_(pool.crew_of_this_process()), lock_(crew_.turn), pinned_(crew_.workers.empty() ? -1 : pool.first_cpu()) {}

int ThreadPool::Turn::threads() const { return int(crew_.workers.size()) + 1; }

void ThreadPool::Turn::run(Task task, void* context) {
    crew_.task = task;
    crew_.context = context;
    crew_.job.change_to(crew_.job.now() + 1);
    task(context, 0, *crew_.barrier);
    crew_.barrier->wait();
}

}  // namespace ingot
