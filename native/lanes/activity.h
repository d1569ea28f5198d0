// What the peer of a link has asked of this process: a sign of life, whichever end looks for one.
#pragma once

#include <atomic>
#include <cstdint>

namespace ldd {

struct LinkActivity {
  std::atomic<std::uint64_t> requests{0};  // authentic ones
  std::atomic<std::uint32_t> lanes{0};     // open ones that are served
};

}  // namespace ldd
