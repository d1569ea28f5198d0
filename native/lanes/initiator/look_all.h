// One look at the lanes of many links: what has come from their peers, and whether lanes are lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lanes/initiator/operations.h"

namespace ldd {

struct Look {
  // A number for each link that changes with each answer and each request of its peer.
  std::vector<std::uint64_t> traffic;
  // Places of links that have fewer lanes than they need (Lanes::need).
  std::vector<std::size_t> incomplete;
};

// With `prune` it also closes free lanes that the peer has closed, which would else count as open
// until they are used. That takes one system call for all, but most of the time of a look: for each
// lane the kernel reads memory that has left the caches. Never blocks.
Look look_all(std::span<Lanes* const> links, bool prune);

}  // namespace ldd
