// Threads of the process that never end, and state that a forked child, which has none of these
// threads, must create again.
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

// Starts a detached thread that receives no signals except those of its own faults; all others are
// for the interpreter's threads. Throws std::system_error.
void start_quiet_thread(std::function<void()> body);

// The errno of a reply when there is no thread for a request. No system call used here fails with
// it.
inline constexpr int kNoThreadErrno = EUSERS;

// Runs `job` on a job thread. These are for work that takes too long for an io thread, or accesses
// memory that may never answer. There are as many threads as jobs, up to a limit, so that a job
// that does not end blocks no other; few threads are kept when idle. `job` must not throw. Returns
// false, without running it, when no thread exists and none can be started.
[[nodiscard]] bool run_on_job_thread(std::function<void()> job);

// Whether so few jobs run or wait that a job may keep its thread longer than necessary.
[[nodiscard]] bool few_jobs();

// Returns the outcome of `work`, or kSystem if it throws (no memory, for example). No exception may
// leave a native thread.
Outcome contained(const std::function<Outcome()>& work);

// One `T` per process. A forked child gets a new one and does not access the inherited one, whose
// locks may be held and whose threads do not exist.
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
