// An estimate of the offset between the target's CLOCK_MONOTONIC and the local one. The two may
// belong to one host, two hosts or two time namespaces. With it a request states its deadline on
// the target's clock, so that the deadline also holds if the request lies in a socket for a while,
// or the target is frozen, before it is received.
#pragma once

#include <atomic>
#include <cstdint>

namespace ldd {

// Shared by all lanes that lead to one target. Thread-safe.
class TargetClock {
 public:
  // `offset_ns` must not exceed the target's clock minus the local one.
  explicit TargetClock(std::int64_t offset_ns = 0) : offset_ns_(offset_ns) {}

  [[nodiscard]] std::int64_t offset_ns() const {
    return offset_ns_.load(std::memory_order_relaxed);
  }
  // Converts a local time to the target's clock. Never later than the true time, provided that the
  // target reports its clock correctly.
  [[nodiscard]] std::int64_t target_ns(std::int64_t local_ns) const;

  // Adds an offset measured when another lane was opened.
  void learn(std::int64_t offset_ns);
  // Adds a reply: the target's clock was `target_ns` at some time between `sent_ns` and
  // `received_ns` of the local clock.
  void learn(std::int64_t target_ns, std::int64_t sent_ns, std::int64_t received_ns);

 private:
  std::atomic<std::int64_t> offset_ns_;
};

}  // namespace ldd
