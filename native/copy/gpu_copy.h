// Copies within this process when a GPU has the memory of either side.
#pragma once

#include <cstdint>

#include "base/outcome.h"
#include "copy/copy_entries.h"
#include "copy/descriptors.h"

namespace ldd {

// Copies `work.remote` to `work.local` through a GPU, on a thread of its own (cuda/job.h), as a
// driver or a GPU may hang. kTimeout at the deadline, kClosed, kLocalGone, kGone, kCancelled by the
// caller's question (base/interrupt.h), kLocalFault without an index for memory at fault, kSystem.
// When it returns, no further chunk is begun. Chunks that a GPU has not finished by then, because
// it hangs, keep the uses of both entries until it has.
Outcome copy_through_gpu(const Descriptors& work, CopyEntries entries, std::int64_t deadline_ns);

}  // namespace ldd
