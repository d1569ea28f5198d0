#include "lanes/initiator/target_clock.h"

#include <limits>

namespace ldd {

namespace {

std::int64_t sum(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) {
    return a < 0 ? std::numeric_limits<std::int64_t>::min()
                 : std::numeric_limits<std::int64_t>::max();
  }
  return result;
}

}  // namespace

std::int64_t TargetClock::target_ns(std::int64_t local_ns) const {
  return sum(local_ns, offset_ns());
}

void TargetClock::learn(std::int64_t offset_ns) {
  std::int64_t known = this->offset_ns();
  while (offset_ns > known && !offset_ns_.compare_exchange_weak(known, offset_ns)) {
  }
}

// The true offset lies between the value for a reply that took no time and the value for a request
// that took none. A known offset within these bounds is kept: it is as good, and often better, as
// it came with a quicker reply. One outside them predates a stop of some clock, as when a host
// sleeps.
void TargetClock::learn(std::int64_t target_ns, std::int64_t sent_ns, std::int64_t received_ns) {
  const std::int64_t least = sum(target_ns, -received_ns);
  const std::int64_t most = sum(target_ns, -sent_ns);
  std::int64_t known = offset_ns();
  while ((known < least || known > most) && !offset_ns_.compare_exchange_weak(known, least)) {
  }
}

}  // namespace ldd
