// Checksums of memory of a GPU: by the library's kernel or, where the driver refuses it, of the
// bytes after they were copied to the host.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "copy/checksum.h"

namespace ldd {

// Ranges of memory of one GPU. The work may outlive its caller (cuda/job.h), so that it has copies
// of everything.
struct GpuRanges {
  int device = 0;
  std::vector<std::uint64_t> addresses;
  std::vector<std::uint64_t> lengths;
  TakeUses take;
  Code fault = Code::kLocalFault;  // for memory that cannot be read
};

// Stores the CRC-32C of each range in `sums`, which must be as long as there are ranges. `more`
// is asked meanwhile. kTimeout at the deadline; the failure of `more`; kSystem for a driver that
// fails. moved_bytes stays 0.
Outcome checksum_on_gpu(GpuRanges ranges, std::int64_t deadline_ns,
                        const std::function<Outcome()>& more, std::span<std::uint32_t> sums);

}  // namespace ldd
