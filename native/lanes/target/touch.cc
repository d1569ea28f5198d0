#include "lanes/target/touch.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "copy/descriptors.h"
#include "copy/guarded_copy.h"
#include "lanes/target/threads.h"

namespace ldd {

namespace {

// At a time. Each page that never comes occupies a thread; the limit leaves threads for other work.
constexpr int kMostTouches = 16;

std::atomic<int> running_touches{0};

Outcome touch_all(const Touch& touch) {
  prepare_guarded_copies();
  std::uint64_t allowed = 0;
  for (std::size_t i = 0; i < touch.lengths.size(); ++i) {
    for (std::uint64_t offset = 0; offset < touch.lengths[i];) {
      if (allowed == 0) {
        const Outcome goes_on = touch.check();
        if (!goes_on.ok()) {
          return goes_on;
        }
        allowed = kBatchBytes;
      }
      const std::uint64_t bytes = std::min(touch.lengths[i] - offset, allowed);
      if (!guarded_probe(reinterpret_cast<const void*>(touch.addresses[i] + offset), bytes)) {
        return Outcome::failure(touch.fault, EFAULT, static_cast<std::int64_t>(i));
      }
      offset += bytes;
      allowed -= bytes;
    }
  }
  return touch.check();
}

// Shared by the waiting thread and the job, which may outlive the wait.
struct Awaited {
  std::mutex mutex;
  std::condition_variable ended;
  std::optional<Outcome> outcome;
};

}  // namespace

bool touch_in_background(Touch touch, std::function<void(const Outcome&)> done) {
  if (running_touches.fetch_add(1) >= kMostTouches) {
    running_touches.fetch_sub(1);
    return false;
  }
  const bool runs = run_on_job_thread([touch = std::move(touch), done = std::move(done)] {
    const Outcome outcome = contained([&] { return touch_all(touch); });
    running_touches.fetch_sub(1);
    done(outcome);
  });
  if (!runs) {
    running_touches.fetch_sub(1);
  }
  return runs;
}

Outcome touch_entry(std::shared_ptr<Node> node, Ref entry, std::vector<std::uint64_t> addresses,
                    std::vector<std::uint64_t> lengths, std::int64_t deadline_ns) {
  const std::shared_ptr<Entry> held = node->entries().find(entry);
  if (held == nullptr) {
    return Outcome::failure(Code::kLocalGone);
  }
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (i >= addresses.size() || !held->contains(addresses[i], lengths[i])) {
      return Outcome::failure(Code::kDenied, 0, static_cast<std::int64_t>(i));
    }
  }
  const auto awaited = std::make_shared<Awaited>();
  const auto check = [node = std::move(node), entry, deadline_ns] {
    if (now_ns() >= deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    return node->view().live(entry) ? Outcome{} : Outcome::failure(Code::kLocalGone);
  };
  const bool runs =
      touch_in_background({std::move(addresses), std::move(lengths), check, Code::kLocalFault},
                          [awaited](const Outcome& outcome) {
                            const std::lock_guard lock(awaited->mutex);
                            awaited->outcome = outcome;
                            awaited->ended.notify_all();
                          });
  if (!runs) {
    return Outcome::failure(Code::kSystem, kNoThreadErrno);
  }
  std::unique_lock lock(awaited->mutex);
  const auto left = std::chrono::nanoseconds(std::max<std::int64_t>(0, deadline_ns - now_ns()));
  awaited->ended.wait_for(lock, left, [&] { return awaited->outcome.has_value(); });
  return awaited->outcome.value_or(Outcome::failure(Code::kTimeout));
}

}  // namespace ldd
