#include "copy/local_copy.h"

#include <utility>
#include <vector>

#include "copy/gpu_copy.h"
#include "copy/pool.h"

namespace ldd {

namespace {

constexpr std::uint64_t kStreamingFrom = 8 * 1024 * 1024;

class LocalCopy {
 public:
  LocalCopy(const Descriptors& work, const CopyEntries& entries, CopyKind kind)
      : work_(work), entries_(entries), kind_(kind) {}

  Outcome batch(const Batch& batch) const {
    CopyEntries::Uses uses;
    const Outcome taken = entries_.take(uses);
    if (!taken.ok()) {
      return taken;
    }
    // On the heap: the caller's thread may have a small stack.
    thread_local std::vector<iovec> room(2 * kMaxIovecs);
    iovec* const to = room.data();
    iovec* const from = to + kMaxIovecs;
    const std::size_t count = fill_iovecs(work_, batch, to, from);
    const CopyFault fault = guarded_copy(to, from, count, kind_);
    if (!fault.none()) {
      const Code code =
          fault.side == FaultSide::kDestination ? Code::kLocalFault : Code::kRemoteFault;
      return Outcome::failure(code, 0,
                              static_cast<std::int64_t>(descriptor_of(work_, batch, fault.piece)));
    }
    return {Code::kOk, 0, -1, batch.bytes};
  }

 private:
  const Descriptors& work_;
  const CopyEntries& entries_;
  CopyKind kind_;
};

}  // namespace

CopyKind copy_kind(std::uint64_t total_bytes) {
  return total_bytes >= kStreamingFrom ? CopyKind::kStreaming : CopyKind::kCached;
}

Outcome copy_batches(const Descriptors& work, const CopyChecks& checks) {
  const Extent extent = measure(work);
  prepare_guarded_copies();
  CopyEntries entries(checks);
  if (entries.destination_device() != kHostMemory || entries.source_device() != kHostMemory) {
    return copy_through_gpu(work, std::move(entries), checks.deadline_ns);
  }
  const LocalCopy copy(work, entries, copy_kind(extent.bytes));
  CopyPool& pool = CopyPool::instance();
  const Division division = division_for(extent, pool.threads(), kMaxIovecs);
  if (division.single) {
    return copy.batch({0, 0, extent.bytes});
  }
  const std::vector<Batch> batches = divide(work, division.batch_bytes, division.batch_pieces);
  return pool.run(batches.size(), [&](std::size_t i) { return copy.batch(batches[i]); });
}

}  // namespace ldd
