// A caller leaves a job that does not return: by its deadline, and others find a thread of their
// own.
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "check.h"
#include "cuda/job.h"

namespace {

using ldd::Code;
using ldd::Outcome;
using ldd::cuda::Job;
using ldd::cuda::run_job;

constexpr std::int64_t kSecond = 1'000'000'000;

std::int64_t in(std::int64_t nanoseconds) { return ldd::now_ns() + nanoseconds; }

class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

class Stuck final : public Job {
 public:
  Stuck(std::shared_ptr<Gate> gate, std::shared_ptr<std::atomic<int>> ended)
      : gate_(std::move(gate)), ended_(std::move(ended)) {}
  ~Stuck() override { ++*ended_; }
  Outcome run() override {
    gate_->pass();
    return {};
  }

 private:
  std::shared_ptr<Gate> gate_;
  std::shared_ptr<std::atomic<int>> ended_;
};

class Quick final : public Job {
 public:
  Outcome run() override { return {Code::kOk, 0, -1, 7}; }
};

class UntilStopped final : public Job {
 public:
  Outcome run() override {
    while (!stopping()) {
      std::this_thread::yield();
    }
    return Outcome::failure(Code::kTimeout, 0, 3);
  }
};

void check_results() {
  const Outcome outcome = run_job(std::make_shared<Quick>(), in(10 * kSecond), nullptr);
  CHECK(outcome.ok() && outcome.moved_bytes == 7);
  CHECK(run_job(std::make_shared<UntilStopped>(), in(kSecond / 100), nullptr).index == 3);
  const auto cancelled = [] { return Outcome::failure(Code::kCancelled); };
  const Outcome stopped = run_job(std::make_shared<UntilStopped>(), in(10 * kSecond), cancelled);
  CHECK(stopped.code == Code::kCancelled && stopped.index == 3);
}

void check_jobs_that_do_not_return() {
  const auto gate = std::make_shared<Gate>();
  const auto ended = std::make_shared<std::atomic<int>>(0);
  const auto stuck = [&] { return std::make_shared<Stuck>(gate, ended); };
  CHECK(run_job(stuck(), in(kSecond / 100), nullptr).code == Code::kTimeout);
  const auto cancelled = [] { return Outcome::failure(Code::kCancelled); };
  CHECK(run_job(stuck(), in(10 * kSecond), cancelled).code == Code::kCancelled);
  CHECK(*ended == 0);  // each still holds what it has
  CHECK(run_job(std::make_shared<Quick>(), in(10 * kSecond), nullptr).ok());
  std::atomic<int> refused{0};
  ldd_test::on_threads(ldd::cuda::kMostJobs, [&](std::size_t) {
    const Outcome outcome = run_job(stuck(), in(kSecond / 100), nullptr);
    refused += outcome.code == Code::kSystem && outcome.sys_errno == EUSERS ? 1 : 0;
  });
  CHECK(refused >= 2);
  gate->open();
  while (*ended != static_cast<int>(ldd::cuda::kMostJobs) + 2) {
    std::this_thread::yield();
  }
  CHECK(run_job(std::make_shared<Quick>(), in(10 * kSecond), nullptr).ok());
}

}  // namespace

int main() {
  check_results();
  check_jobs_that_do_not_return();
  return 0;
}
