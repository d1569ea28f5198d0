#include "copy/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/fault_signals.h"

namespace ldd {

namespace {

constexpr std::size_t kMostDefaultThreads = 8;

std::size_t default_threads() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
    return 1;
  }
  return std::clamp<std::size_t>(static_cast<std::size_t>(CPU_COUNT(&allowed)), 1,
                                 kMostDefaultThreads);
}

// One operation. Lives on its caller's stack. All but `next` is guarded by Workers::mutex.
struct Job {
  std::size_t count = 0;
  const std::function<Outcome(std::size_t)>* run_batch = nullptr;
  std::atomic<std::size_t> next{0};
  std::size_t helpers = 0;  // workers inside run_batch
  std::size_t failed_batch = SIZE_MAX;
  Outcome result;

  // Runs one batch if any is left.
  bool step(Outcome& outcome, std::size_t& batch) {
    // Checked before it is incremented, so that the counter cannot overflow.
    if (next.load(std::memory_order_relaxed) >= count) {
      return false;
    }
    batch = next.fetch_add(1, std::memory_order_relaxed);
    if (batch >= count) {
      return false;
    }
    outcome = (*run_batch)(batch);
    if (!outcome.ok()) {
      next.store(count, std::memory_order_relaxed);
    }
    return true;
  }

  void settle(const Outcome& outcome, std::size_t batch) {
    const std::uint64_t moved_bytes = result.moved_bytes + outcome.moved_bytes;
    if (!outcome.ok() && batch < failed_batch) {
      failed_batch = batch;
      result = outcome;
    }
    result.moved_bytes = moved_bytes;
  }
};

class Workers {
 public:
  explicit Workers(std::size_t threads) : threads_(threads) {}

  [[nodiscard]] std::size_t threads() const { return threads_.load(std::memory_order_relaxed); }
  void set_threads(std::size_t threads);
  Outcome run(Job& job);

 private:
  void start_missing();
  void serve(std::size_t place);

  std::atomic<std::size_t> threads_;
  std::mutex resize_;  // held while threads are started or joined
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable settled_;
  std::list<Job*> jobs_;
  std::vector<std::thread> workers_;
};

void Workers::set_threads(std::size_t threads) {
  const std::lock_guard resizing(resize_);
  std::vector<std::thread> leaving;
  {
    const std::lock_guard lock(mutex_);
    threads_.store(threads, std::memory_order_relaxed);
    while (workers_.size() > threads - 1) {
      leaving.push_back(std::move(workers_.back()));
      workers_.pop_back();
    }
  }
  work_.notify_all();
  for (std::thread& worker : leaving) {
    worker.join();
  }
}

// Called with mutex_ held. If no more threads can be started, the existing ones do the work.
void Workers::start_missing() {
  const FaultSignalsOnly mask;
  try {
    while (workers_.size() + 1 < threads()) {
      workers_.emplace_back([this, place = workers_.size()] { serve(place); });
    }
  } catch (const std::system_error&) {
    threads_.store(workers_.size() + 1, std::memory_order_relaxed);
  }
}

Outcome Workers::run(Job& job) {
  const std::list<Job*>::iterator place = [&] {
    const std::lock_guard lock(mutex_);
    if (workers_.size() + 1 < threads()) {
      start_missing();
    }
    return jobs_.insert(jobs_.begin(), &job);
  }();
  const std::size_t wanted = std::min(job.count, threads()) - 1;
  if (wanted + 1 == threads()) {
    work_.notify_all();
  } else {
    for (std::size_t i = 0; i < wanted; ++i) {
      work_.notify_one();
    }
  }
  Outcome outcome;
  Outcome own;
  std::size_t batch = 0;
  std::size_t own_failed = SIZE_MAX;
  std::uint64_t own_bytes = 0;
  while (job.step(outcome, batch)) {
    own_bytes += outcome.moved_bytes;
    if (!outcome.ok()) {
      own = outcome;
      own_failed = batch;
    }
  }
  own.moved_bytes = own_bytes;
  std::unique_lock lock(mutex_);
  jobs_.erase(place);
  settled_.wait(lock, [&] { return job.helpers == 0; });
  job.settle(own, own_failed);
  return job.result;
}

void Workers::serve(std::size_t place) {
  ::pthread_setname_np(::pthread_self(), "ldd-copy");
  std::unique_lock lock(mutex_);
  for (;;) {
    Job* job = nullptr;
    for (auto found = jobs_.begin(); found != jobs_.end(); ++found) {
      if ((*found)->next.load(std::memory_order_relaxed) < (*found)->count) {
        job = *found;
        jobs_.splice(jobs_.end(), jobs_, found);  // so that the next worker takes another job first
        break;
      }
    }
    if (place + 1 >= threads()) {
      return;
    }
    if (job == nullptr) {
      work_.wait(lock);
      continue;
    }
    ++job->helpers;
    lock.unlock();
    Outcome outcome;
    std::size_t batch = 0;
    const bool ran = job->step(outcome, batch);
    lock.lock();
    if (ran) {
      job->settle(outcome, batch);
    }
    if (--job->helpers == 0) {
      settled_.notify_all();
    }
  }
}

std::atomic<std::size_t> requested_threads{0};  // 0 = by the cores
std::atomic<Workers*> current{nullptr};  // never freed: threads may run until the process ends

// The parent's workers do not exist in the child, nor do threads that may hold its locks.
void forget_workers() { current.store(nullptr, std::memory_order_relaxed); }

[[maybe_unused]] const int kRegistered = ::pthread_atfork(nullptr, nullptr, forget_workers);

Workers& workers() {
  Workers* found = current.load(std::memory_order_acquire);
  if (found == nullptr) {
    const std::size_t wanted = requested_threads.load(std::memory_order_relaxed);
    auto fresh = std::make_unique<Workers>(wanted != 0 ? wanted : default_threads());
    if (current.compare_exchange_strong(found, fresh.get(), std::memory_order_acq_rel)) {
      return *fresh.release();
    }
  }
  return *found;
}

}  // namespace

CopyPool& CopyPool::instance() {
  static CopyPool pool;
  return pool;
}

Outcome CopyPool::run(std::size_t count, const std::function<Outcome(std::size_t)>& run_batch) {
  if (count == 1) {
    return run_batch(0);
  }
  Workers& all = workers();
  Job job;
  job.count = count;
  job.run_batch = &run_batch;
  if (all.threads() > 1 && count > 1) {
    return all.run(job);
  }
  Outcome outcome;
  std::size_t batch = 0;
  while (job.step(outcome, batch)) {
    job.settle(outcome, batch);
  }
  return job.result;
}

void CopyPool::set_threads(std::size_t count) {
  requested_threads.store(count, std::memory_order_relaxed);
  workers().set_threads(count != 0 ? count : default_threads());
}

std::size_t CopyPool::threads() const { return workers().threads(); }

}  // namespace ldd
