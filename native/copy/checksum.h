// Checksums of ranges of this process's memory, on several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "memory/node.h"

namespace ldd {

// Called before each batch, from several threads at once. Adds the uses to hold while the batch is
// read; not ok ends the operation.
using TakeUses = std::function<Outcome(std::vector<Use>& uses)>;

// Conditions checked before each batch.
struct SumChecks {
  Node* node = nullptr;
  Ref entry;  // of the node; unnamed = nothing to check
  std::int64_t deadline_ns = 0;
};

// Stores the CRC-32C of each range in `sums`, which must be as long as there are ranges. Fails with
// `fault` and the index of a range that cannot be read. moved_bytes stays 0.
Outcome checksum_ranges(std::span<const std::uint64_t> addresses,
                        std::span<const std::uint64_t> lengths, const TakeUses& take, Code fault,
                        std::span<std::uint32_t> sums);

// Checks ranges one after the other, on the calling thread and holding nothing, so that a page that
// never comes blocks this thread only. Fills `readable` with one byte for each range checked before
// the deadline: 1 if each of its pages can be read, else 0.
void probe_each(std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths,
                std::int64_t deadline_ns, std::vector<std::uint8_t>& readable);

// Checksums of memory of one local entry, which may be a GPU's (gpu_checksum.h). Fails with
// kLocalGone, kLocalFault, kTimeout or kClosed.
Outcome checksum_entry(std::span<const std::uint64_t> addresses,
                       std::span<const std::uint64_t> lengths, const SumChecks& checks,
                       std::span<std::uint32_t> sums);

}  // namespace ldd
