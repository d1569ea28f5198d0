// Deadlines are absolute nanoseconds of CLOCK_MONOTONIC, the clock of Python's time.monotonic_ns().
#pragma once

#include <cstdint>
#include <ctime>

namespace ldd {

inline std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// Milliseconds left until `deadline_ns`, rounded up, at least 0 and at most `cap`; for poll(2).
inline int remaining_ms(std::int64_t deadline_ns, int cap) {
  const std::int64_t left_ns = deadline_ns - now_ns();
  if (left_ns <= 0) {
    return 0;
  }
  const std::int64_t left_ms = (left_ns + 999'999) / 1'000'000;
  return left_ms < cap ? static_cast<int>(left_ms) : cap;
}

}  // namespace ldd
