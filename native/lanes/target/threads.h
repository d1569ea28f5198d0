// Threads of the process that never end, and what a forked child, which has none of them, starts
// anew.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "base/fork.h"
#include "base/outcome.h"

namespace ldd {

// Starts a detached thread that gets no signals but those of own faults: others belong to the
// interpreter's threads.
// Throws std::system_error.
void start_quiet_thread(std::function<void()> body);

// What a peer is told when there is no thread for what it asks: no system call fails so.
inline constexpr int kNoThreadErrno = EUSERS;

// Runs `job` on a thread kept for work that takes longer than an io thread may be away, or that
// touches memory which may never answer. There are as many threads as jobs, up to a limit, so that
// jobs that do not end keep no other waiting; few of them are kept when idle. Jobs must not throw.
// False, and the job is not run, when there is no thread and none can be had.
[[nodiscard]] bool run_on_job_thread(std::function<void()> job);

// Whether so few jobs run or wait that one may keep its thread a moment longer than it must.
[[nodiscard]] bool few_jobs();

// What `work` comes to; kSystem for what it throws (no memory, say), which must not leave a native
// thread.
Outcome contained(const std::function<Outcome()>& work);

// A `T` per process: the forked child gets a fresh one and leaves the inherited one alone, since
// its locks may be held and its threads do not exist.
template <typename T>
class PerProcess {
 public:
  template <typename Use>
  decltype(auto) with(Use&& use) {
    Slot* slot = current();
    const std::lock_guard lock(slot->mutex);
    return std::forward<Use>(use)(slot->value);
  }

 private:
  struct Slot {
    std::uint64_t generation = fork_generation();
    std::mutex mutex;
    T value{};
  };

  Slot* current() {
    Slot* slot = slot_.load(std::memory_order_acquire);
    while (slot == nullptr || slot->generation != fork_generation()) {
      auto fresh = std::make_unique<Slot>();
      if (slot_.compare_exchange_strong(slot, fresh.get(), std::memory_order_acq_rel)) {
        return fresh.release();  // kept for the life of the process
      }
    }
    return slot;
  }

  std::atomic<Slot*> slot_{nullptr};
};

}  // namespace ldd
