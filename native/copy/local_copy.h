// Copies within this process, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/outcome.h"
#include "copy/descriptors.h"
#include "copy/guarded_copy.h"
#include "memory/node.h"

namespace ldd {

// Conditions checked before each batch of a copy.
struct CopyChecks {
  Node* node = nullptr;  // null: no entries to check
  Ref destination;       // entries of the node; unnamed = nothing to check
  Ref source;
  std::int64_t deadline_ns = 0;
};

// Whether the stores of a transfer of that size should bypass the caches.
CopyKind copy_kind(std::uint64_t total_bytes);

// Copies `work.remote` (the source) to `work.local` (the destination). Ranges of the two sides must
// not overlap. Fails with kLocalGone/kLocalFault for the destination, kGone/kRemoteFault for the
// source, kTimeout, kClosed, or kSystem when an accelerator's driver fails. When it returns,
// nothing is written any more.
Outcome copy_batches(const Descriptors& work, const CopyChecks& checks);

}  // namespace ldd
