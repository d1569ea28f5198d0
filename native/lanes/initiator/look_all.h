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

// Takes one system call for all free lanes, and closes those that the peer has closed. Never
// blocks.
Look look_all(std::span<Lanes* const> links);

}  // namespace ldd
