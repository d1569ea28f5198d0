// The memory in which a target leaves the bytes of a GATHER for the initiator to read.
#pragma once

#include <cstddef>
#include <span>

#include "base/mapped_region.h"

namespace ldd {

// Of one lane: it exists from a GATHER until the next request of another kind. All buffers of the
// process are bounded.
class GatherBuffer {
 public:
  GatherBuffer() = default;
  GatherBuffer(const GatherBuffer&) = delete;
  GatherBuffer& operator=(const GatherBuffer&) = delete;
  ~GatherBuffer() { reset(); }

  // The buffer, of wire::kMaxGatherBytes; empty when the process has too many or no memory.
  [[nodiscard]] std::span<std::byte> room();
  void reset();

 private:
  MappedRegion memory_;
};

}  // namespace ldd
