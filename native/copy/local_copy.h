// Copies within this process, on several threads.
#pragma once

#include <cstdint>

#include "base/outcome.h"
#include "copy/copy_entries.h"
#include "copy/descriptors.h"
#include "copy/guarded_copy.h"

namespace ldd {

// Whether the stores of a transfer of that size should bypass the caches.
CopyKind copy_kind(std::uint64_t total_bytes);

// Copies `work.remote` (the source) to `work.local` (the destination). Ranges of the two sides must
// not overlap. Fails with kLocalGone/kLocalFault for the destination, kGone/kRemoteFault for the
// source, kTimeout, kClosed. When it returns, nothing is written any more. What a GPU copies ends
// as copy_through_gpu() says.
Outcome copy_batches(const Descriptors& work, const CopyChecks& checks);

}  // namespace ldd
