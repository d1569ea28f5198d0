// Brings pages of this process into memory, on threads that no call must wait for: a page that
// never comes occupies one thread. Few of them work at a time.
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
  // Called before the first page and then every few MiB, on the job thread. Not ok ends the job.
  std::function<Outcome()> check;
  Code fault = Code::kRemoteFault;  // with the range's index, when a page cannot be read
};

// Reads one byte of each page of the ranges on a job thread, which holds no entry meanwhile, and
// calls `done` there. Returns false when there is no thread, or too many touches are still running.
[[nodiscard]] bool touch_in_background(Touch touch, std::function<void(const Outcome&)> done);

// The same for local ranges inside `entry`, waiting until the deadline. Fails with kLocalGone,
// kDenied for a range outside, kLocalFault, kTimeout, or kSystem when there is no thread.
Outcome touch_entry(std::shared_ptr<Node> node, Ref entry, std::vector<std::uint64_t> addresses,
                    std::vector<std::uint64_t> lengths, std::int64_t deadline_ns);

}  // namespace ldd
