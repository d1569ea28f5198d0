// Checks on many links at once that the peers' native threads answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// Sends one PING on a free lane of each link and waits for all replies together, until the
// deadline. Returns outcomes in the order of `links`. A link whose lanes are all in use gets
// kTimeout at once: the operations in progress show whether it works. A lane without a reply is
// discarded.
std::vector<Outcome> ping_all(std::span<LaneSet* const> links, std::int64_t deadline_ns);

}  // namespace ldd
