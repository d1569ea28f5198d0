// Checksums of ranges of this process's memory, on several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "memory/node.h"

namespace ldd {

// Asked before each batch, from several threads at once: adds what has to be held while the batch
// is read; not ok ends the operation.
using TakeUses = std::function<Outcome(std::vector<Use>& uses)>;

// What has to hold before each batch.
struct SumChecks {
  Node* node = nullptr;
  Ref entry;  // of the node; unnamed = nothing to check
  std::int64_t deadline_ns = 0;
};

// Puts the CRC-32C of each range into `sums` (as many as there are ranges). Memory that cannot be
// read gives `fault` with the index of the range. moved_bytes stays 0.
Outcome checksum_ranges(std::span<const std::uint64_t> addresses,
                        std::span<const std::uint64_t> lengths, const TakeUses& take, Code fault,
                        std::span<std::uint32_t> sums);

// Looks at ranges one after the other, on the calling thread alone and holding nothing: so that a
// page which never answers keeps the caller alone. Makes `readable` one byte for each range
// that was looked at before the deadline: 1 when a byte of each of its pages can be read, else 0.
void probe_each(std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths,
                std::int64_t deadline_ns, std::vector<std::uint8_t>& readable);

// Checksums of memory of one entry of a node, on behalf of the side that asks: kLocalGone,
// kLocalFault, kTimeout, kClosed.
Outcome checksum_entry(std::span<const std::uint64_t> addresses,
                       std::span<const std::uint64_t> lengths, const SumChecks& checks,
                       std::span<std::uint32_t> sums);

}  // namespace ldd
