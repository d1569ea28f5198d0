// Brings own pages into memory, on threads that no call has to wait for: a page that never comes
// keeps one of them, and few of them work at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/outcome.h"
#include "memory/node.h"

namespace ldd {

struct Touch {
  std::vector<std::uint64_t> addresses;
  std::vector<std::uint64_t> lengths;
  // Asked before the first page and then every few MiB, on the job's thread; not ok ends it.
  std::function<Outcome()> check;
  Code fault = Code::kRemoteFault;  // with the range's index, when a page cannot be read
};

// Reads one byte of each page of the ranges on a job thread, which holds no entry meanwhile, and
// calls `done` there. False when there is no thread to be had, or too many touches have not ended.
[[nodiscard]] bool touch_in_background(Touch touch, std::function<void(const Outcome&)> done);

// The same for own ranges inside `entry`, awaited until the deadline: kLocalGone, kDenied for a
// range outside, kLocalFault, kTimeout, or kSystem when there is no thread.
Outcome touch_entry(std::shared_ptr<Node> node, Ref entry, std::vector<std::uint64_t> addresses,
                    std::vector<std::uint64_t> lengths, std::int64_t deadline_ns);

}  // namespace ldd
