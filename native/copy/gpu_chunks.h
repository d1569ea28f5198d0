// A transfer through a GPU, chunk by chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "base/outcome.h"
#include "copy/descriptors.h"
#include "cuda/copy.h"

namespace ldd {

// Submits the chunks in order with `begin`, until one of them fails, and waits for their copies.
// After a failure `copies` must be destroyed, which waits for those in flight.
template <typename Begin>
Outcome copy_in_chunks(cuda::StreamCopies& copies, const std::vector<Batch>& chunks,
                       const Begin& begin) {
  std::uint64_t bytes = 0;
  for (const Batch& chunk : chunks) {
    const Outcome begun = begin(chunk);
    if (!begun.ok()) {
      return begun;
    }
    bytes += chunk.bytes;
  }
  Outcome outcome = cuda::outcome_of(copies.finish());
  outcome.moved_bytes = outcome.ok() ? bytes : 0;
  return outcome;
}

}  // namespace ldd
