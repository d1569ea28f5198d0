#include "lanes/threads.h"

#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

#include "base/fault_signals.h"

namespace ldd {

namespace {

constexpr std::size_t kJobThreads = 64;
constexpr std::size_t kIdleThreads = 4;

struct Jobs {
  std::mutex mutex;
  std::condition_variable ready;
  std::deque<std::function<void()>> queue;
  std::size_t threads = 0;
  std::size_t idle = 0;
};

void serve_jobs(Jobs& jobs) {
  std::unique_lock lock(jobs.mutex);
  for (;;) {
    ++jobs.idle;
    if (jobs.queue.empty() && jobs.idle > kIdleThreads) {
      break;
    }
    jobs.ready.wait(lock, [&] { return !jobs.queue.empty(); });
    --jobs.idle;
    std::function<void()> job = std::move(jobs.queue.front());
    jobs.queue.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
  --jobs.idle;
  --jobs.threads;
}

}  // namespace

Outcome contained(const std::function<Outcome()>& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return Outcome::failure(Code::kSystem, ENOMEM);
  } catch (const std::exception&) {
    return Outcome::failure(Code::kSystem, EINVAL);
  }
}

void start_quiet_thread(std::function<void()> body) {
  const FaultSignalsOnly mask;
  std::thread([run = std::move(body)]() noexcept { run(); }).detach();
}

bool run_on_job_thread(std::function<void()> job) {
  static PerProcess<Jobs*> per_process;
  Jobs& jobs = *per_process.with([](Jobs*& own) {
    if (own == nullptr) {
      own = new Jobs;  // NOLINT(cppcoreguidelines-owning-memory): threads outlive it
    }
    return own;
  });
  const std::lock_guard lock(jobs.mutex);
  if (jobs.idle <= jobs.queue.size() && jobs.threads < kJobThreads) {
    try {
      start_quiet_thread([&jobs] { serve_jobs(jobs); });
      ++jobs.threads;
    } catch (const std::system_error&) {
      if (jobs.threads == 0) {
        return false;
      }
    }
  }
  jobs.queue.push_back(std::move(job));
  jobs.ready.notify_one();
  return true;
}

}  // namespace ldd
