// How a target's CLOCK_MONOTONIC stands to the own one. The two may be of one host, of two hosts,
// or of two time namespaces; a deadline that the target can compare with its own clock holds also
// when the request lay in a socket, or the target was frozen, before it was received.
#pragma once

#include <atomic>
#include <cstdint>

namespace ldd {

// Of all lanes that lead to one target. Thread-safe.
class TargetClock {
 public:
  // Not more than the target's clock less the own one.
  explicit TargetClock(std::int64_t offset_ns = 0) : offset_ns_(offset_ns) {}

  [[nodiscard]] std::int64_t offset_ns() const {
    return offset_ns_.load(std::memory_order_relaxed);
  }
  // The target's time at an own time; never later than it is, as far as the target told the truth.
  [[nodiscard]] std::int64_t there(std::int64_t own_ns) const;

  // Another such offset, of a lane's opening.
  void learn(std::int64_t offset_ns);
  // The target said that its clock was `said_ns`, at some moment from `asked_ns` to `heard_ns`.
  void learn(std::int64_t said_ns, std::int64_t asked_ns, std::int64_t heard_ns);

 private:
  std::atomic<std::int64_t> offset_ns_;
};

}  // namespace ldd
