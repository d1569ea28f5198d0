// What an initiator takes a target's clock for: never ahead of it, and right again when it changes.
#include <limits>

#include "check.h"
#include "lanes/initiator/target_clock.h"

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

void check_quicker_replies_are_kept() {
  constexpr std::int64_t kTrue = 500 * kSecond;
  ldd::TargetClock clock(kTrue - 2 * kSecond);  // the opening was slow
  // Asked at 10, said at 10.5, heard at 11.
  clock.learn(kTrue + 10 * kSecond + kSecond / 2, 10 * kSecond, 11 * kSecond);
  CHECK(clock.offset_ns() == kTrue - kSecond / 2);
  // A quick one: nearer, and still not ahead.
  clock.learn(kTrue + 20 * kSecond, 20 * kSecond - 10, 20 * kSecond + 10);
  CHECK(clock.offset_ns() == kTrue - 10);
  // One that was heard 3 seconds late says nothing new.
  clock.learn(kTrue + 30 * kSecond, 30 * kSecond, 33 * kSecond);
  CHECK(clock.offset_ns() == kTrue - 10);
  clock.learn(kTrue - kSecond);  // another lane was opened slowly
  CHECK(clock.offset_ns() == kTrue - 10);
  clock.learn(kTrue - 5);
  CHECK(clock.offset_ns() == kTrue - 5);
  CHECK(clock.target_ns(7 * kSecond) == kTrue - 5 + 7 * kSecond);
}

void check_a_clock_that_stood_still_is_noticed() {
  ldd::TargetClock clock(100 * kSecond);
  clock.learn(60 * kSecond, 50 * kSecond, 50 * kSecond + 20);  // its host slept
  CHECK(clock.offset_ns() == 10 * kSecond - 20);
  clock.learn(60 * kSecond, 30 * kSecond, 30 * kSecond + 20);  // our host slept
  CHECK(clock.offset_ns() == 30 * kSecond - 20);
}

void check_no_clock_is_too_odd() {
  for (const std::int64_t offset : {kMost, kLeast, std::int64_t{0}}) {
    ldd::TargetClock clock(offset);
    CHECK(clock.target_ns(kMost) >= clock.target_ns(0) &&
          clock.target_ns(kLeast + 1) <= clock.target_ns(0));
    clock.learn(std::int64_t{1} << 62, kMost, kMost);
    clock.learn(0, kMost - 1, kMost);
    CHECK(clock.offset_ns() == -kMost);
  }
}

}  // namespace

int main() {
  check_quicker_replies_are_kept();
  check_a_clock_that_stood_still_is_noticed();
  check_no_clock_is_too_odd();
  return 0;
}
