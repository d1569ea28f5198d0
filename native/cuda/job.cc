#include "cuda/job.h"

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/fault_signals.h"

namespace ldd::cuda {

namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr auto kAskEvery = milliseconds(2);
constexpr auto kToStop = milliseconds(50);

struct Posted {
  std::shared_ptr<Job> job;
  std::mutex mutex;
  std::condition_variable done;
  std::optional<Outcome> outcome;
};

// No exception may leave a native thread.
Outcome run(Job& job) {
  try {
    return job.run();
  } catch (const std::bad_alloc&) {
    return Outcome::failure(Code::kSystem, ENOMEM);
  } catch (const std::exception&) {
    return Outcome::failure(Code::kSystem, EINVAL);
  }
}

// Never destroyed: threads may outlive static destructors.
class Threads {
 public:
  static Threads& instance() {
    static Threads* const one = new Threads;  // NOLINT(cppcoreguidelines-owning-memory)
    return *one;
  }

  // False: there is no thread, and can be none.
  bool post(std::shared_ptr<Posted> posted) {
    const std::lock_guard lock(mutex_);
    if (idle_ <= waiting_.size()) {
      if (count_ == kMostJobs || !start()) {
        return false;
      }
    }
    waiting_.push_back(std::move(posted));
    changed_.notify_one();
    return true;
  }

 private:
  bool start() {
    const FaultSignalsOnly mask;
    try {
      std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++count_;
    ++idle_;
    return true;
  }

  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return !waiting_.empty(); });
      std::shared_ptr<Posted> posted = std::move(waiting_.front());
      waiting_.pop_front();
      --idle_;
      lock.unlock();
      const Outcome outcome = run(*posted->job);
      {
        const std::lock_guard inner(posted->mutex);
        posted->outcome = outcome;
        posted->done.notify_all();
      }
      posted.reset();  // without the lock: the end of a job may call the driver
      lock.lock();
      ++idle_;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Posted>> waiting_;
  std::size_t count_ = 0;
  std::size_t idle_ = 0;  // threads that wait for a job, those counted that a job waits for
};

}  // namespace

bool start_job(std::shared_ptr<Job> job) {
  const auto posted = std::make_shared<Posted>();
  posted->job = std::move(job);
  return Threads::instance().post(posted);
}

Outcome run_job(std::shared_ptr<Job> job, std::int64_t deadline_ns,
                const std::function<Outcome()>& more) {
  const auto posted = std::make_shared<Posted>();
  posted->job = std::move(job);
  if (!Threads::instance().post(posted)) {
    return Outcome::failure(Code::kSystem, EUSERS);
  }
  const auto finished = [&] { return posted->outcome.has_value(); };
  std::unique_lock lock(posted->mutex);
  Outcome why = Outcome::failure(Code::kTimeout);
  while (!finished()) {
    const nanoseconds left(deadline_ns - now_ns());
    if (left <= nanoseconds::zero()) {
      break;
    }
    posted->done.wait_for(lock, std::min<nanoseconds>(left, kAskEvery), finished);
    if (!finished() && more) {
      lock.unlock();
      const Outcome asked = more();
      lock.lock();
      if (!asked.ok()) {
        why = asked;
        break;
      }
    }
  }
  posted->job->stop();
  posted->done.wait_for(lock, kToStop, finished);
  Outcome outcome = posted->outcome.value_or(why);
  if (outcome.code == Code::kTimeout) {  // a job does not know why it must stop
    outcome.code = why.code;
    outcome.sys_errno = why.sys_errno;
  }
  return outcome;
}

}  // namespace ldd::cuda
