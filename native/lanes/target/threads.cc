#include "lanes/target/threads.h"

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
  std::atomic<std::size_t> unfinished{0};  // running, or in the queue
  std::size_t threads = 0;
  std::size_t idle = 0;
};

Jobs& jobs_of_process() {
  static PerProcess<Jobs*> per_process;
  return *per_process.with([](Jobs*& own) {
    if (own == nullptr) {
      own = new Jobs;  // NOLINT(cppcoreguidelines-owning-memory): threads outlive it
    }
    return own;
  });
}

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
    jobs.unfinished.fetch_sub(1, std::memory_order_relaxed);
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

bool few_jobs() {
  return jobs_of_process().unfinished.load(std::memory_order_relaxed) <= kIdleThreads;
}

bool run_on_job_thread(std::function<void()> job) {
  Jobs& jobs = jobs_of_process();
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
  jobs.unfinished.fetch_add(1, std::memory_order_relaxed);
  jobs.ready.notify_one();
  return true;
}

}  // namespace ldd
