// Asks many links at once whether their peers' native threads answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// One PING on a free lane of each link, all under way together; outcomes in the order of `links`,
// by the deadline. A link whose lanes are all in use gets kTimeout at once: what uses them will
// tell. A lane without an answer is discarded.
std::vector<Outcome> ping_all(std::span<LaneSet* const> links, std::int64_t deadline_ns);

}  // namespace ldd
