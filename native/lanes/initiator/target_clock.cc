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

std::int64_t TargetClock::there(std::int64_t own_ns) const { return sum(own_ns, offset_ns()); }

void TargetClock::learn(std::int64_t offset_ns) {
  std::int64_t known = this->offset_ns();
  while (offset_ns > known && !offset_ns_.compare_exchange_weak(known, offset_ns)) {
  }
}

// The true offset lies between what it would be had the reply taken no time, and had the request
// taken none. A known one in there is as good and often better: it came with a quicker reply. One
// that does not is of before some clock was held up, as when a host slept.
void TargetClock::learn(std::int64_t said_ns, std::int64_t asked_ns, std::int64_t heard_ns) {
  const std::int64_t least = sum(said_ns, -heard_ns);
  const std::int64_t most = sum(said_ns, -asked_ns);
  std::int64_t known = offset_ns();
  while ((known < least || known > most) && !offset_ns_.compare_exchange_weak(known, least)) {
  }
}

}  // namespace ldd
