// The copy workers: every batch once, failures, several operations at once, changing thread counts.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "copy/pool.h"

namespace {

using ldd::Code;
using ldd::CopyPool;
using ldd::Outcome;

void check_every_batch_once(std::size_t count) {
  std::vector<std::atomic<int>> runs(count);
  const Outcome outcome = CopyPool::instance().run(count, [&](std::size_t i) {
    runs[i].fetch_add(1);
    return Outcome{Code::kOk, 0, -1, i};
  });
  CHECK(outcome.ok());
  CHECK(outcome.moved_bytes == count * (count - 1) / 2 || count == 0);
  for (const auto& each : runs) {
    CHECK(each.load() == 1);
  }
}

void check_the_lowest_failure_wins() {
  std::atomic<int> running{0};
  for (std::size_t bad = 0; bad < 64; ++bad) {
    std::atomic<bool> ran_after{false};
    const Outcome outcome = CopyPool::instance().run(1000, [&](std::size_t i) {
      running.fetch_add(1);
      const Outcome result = i >= bad ? Outcome::failure(Code::kTimeout, 0, static_cast<int>(i))
                                      : Outcome{Code::kOk, 0, -1, 1};
      ran_after.store(i > bad + 16);
      running.fetch_sub(1);
      return result;
    });
    CHECK(running.load() == 0);
    CHECK(outcome.code == Code::kTimeout && outcome.index == static_cast<int>(bad));
    CHECK(outcome.moved_bytes == bad);
    CHECK(!ran_after.load());
  }
}

// The second batch fails, and its failure is known, after that of the first.
void check_the_earlier_of_two_batches_wins() {
  CopyPool::instance().set_threads(2);
  std::atomic<bool> second_runs{false};
  const Outcome outcome = CopyPool::instance().run(2, [&](std::size_t i) {
    if (i == 1) {
      second_runs.store(true);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    while (!second_runs.load()) {
      std::this_thread::yield();
    }
    return Outcome::failure(Code::kTimeout, 0, static_cast<int>(i));
  });
  CHECK(outcome.index == 0);
}

void check_operations_at_once() {
  std::atomic<bool> stop{false};
  std::thread resizing([&] {
    for (std::size_t round = 0; round < 60; ++round) {
      CopyPool::instance().set_threads(1 + round % 4);
    }
    stop.store(true);
  });
  ldd_test::on_threads(4, [&](std::size_t) {
    while (!stop.load()) {
      check_every_batch_once(37);
    }
  });
  resizing.join();
}

}  // namespace

int main() {
  CHECK(CopyPool::instance().threads() >= 1);
  for (const std::size_t threads : {1U, 2U, 4U}) {
    CopyPool::instance().set_threads(threads);
    CHECK(CopyPool::instance().threads() == threads);
    for (const std::size_t count : {0U, 1U, 2U, 3U, 100U, 5000U}) {
      check_every_batch_once(count);
    }
    check_the_lowest_failure_wins();
  }
  check_the_earlier_of_two_batches_wins();
  check_operations_at_once();
  CopyPool::instance().set_threads(1);
}
