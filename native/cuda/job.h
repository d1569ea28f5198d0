// Work with a GPU that its caller can leave: a driver may not return from a call, and a GPU may not
// finish what it was given.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/outcome.h"

namespace ldd::cuda {

// Runs on a thread of its own. Everything that run() uses must belong to the job.
class Job {
 public:
  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  virtual ~Job() = default;

  virtual Outcome run() = 0;
  // Whether the caller wants it to end: it must begin no further copy.
  [[nodiscard]] bool stopping() const { return stop_.load(std::memory_order_acquire); }
  void stop() { stop_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> stop_{false};
};

// The most jobs at once, those included that their callers have left.
inline constexpr std::size_t kMostJobs = 64;

// Runs a job and returns its outcome. `more` (null: always ok) is asked meanwhile, on this thread.
// When it fails, or at the deadline, the job is told to stop, and gets a moment to do so. If it
// does not return then, the caller leaves it with kTimeout or the failure of `more`, which also
// replaces a kTimeout of the job. A job that was left keeps what it holds until it does return.
// kSystem with EUSERS when there is no thread for it.
Outcome run_job(std::shared_ptr<Job> job, std::int64_t deadline_ns,
                const std::function<Outcome()>& more);

// Starts a job without waiting for it: run() itself must tell how it ended. False: there is no
// thread for it.
bool start_job(std::shared_ptr<Job> job);

}  // namespace ldd::cuda
