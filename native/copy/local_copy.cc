#include "copy/local_copy.h"

#include <memory>
#include <vector>

#include "base/clock.h"
#include "copy/pool.h"
#include "cuda/copy.h"

namespace ldd {

namespace {

constexpr std::uint64_t kStreamingFrom = 8 * 1024 * 1024;

// One side's entry: looked up once, used batch by batch.
struct Side {
  std::shared_ptr<Entry> entry;
  Ref ref;

  Side(Node* node, Ref wanted) : ref(wanted) {
    if (node != nullptr && ref.named()) {
      entry = node->entries().find(ref);
    }
  }
  [[nodiscard]] Use use() const { return {entry, ref.value}; }
  [[nodiscard]] int device() const { return entry == nullptr ? kHostMemory : entry->device(); }
};

class LocalCopy {
 public:
  LocalCopy(const Descriptors& work, const CopyChecks& checks, CopyKind kind)
      : work_(work),
        checks_(checks),
        kind_(kind),
        destination_(checks.node, checks.destination),
        source_(checks.node, checks.source) {}

  Outcome batch(const Batch& batch) const {
    if (checks_.node != nullptr && checks_.node->closed()) {
      return Outcome::failure(Code::kClosed);
    }
    if (now_ns() >= checks_.deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    const Use writing = destination_.use();
    if (checks_.destination.named() && !writing) {
      return Outcome::failure(Code::kLocalGone);
    }
    const Use reading = source_.use();
    if (checks_.source.named() && !reading) {
      return Outcome::failure(Code::kGone);
    }
    // On the heap: the caller's thread may have a small stack.
    thread_local std::vector<iovec> room(2 * kMaxIovecs);
    iovec* const to = room.data();
    iovec* const from = to + kMaxIovecs;
    const std::size_t count = fill_iovecs(work_, batch, to, from);
    const int device =
        destination_.device() != kHostMemory ? destination_.device() : source_.device();
    if (device != kHostMemory) {
      return cuda::copy_pairs(device, to, from, count);
    }
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
  const CopyChecks& checks_;
  CopyKind kind_;
  Side destination_;
  Side source_;
};

}  // namespace

CopyKind copy_kind(std::uint64_t total_bytes) {
  return total_bytes >= kStreamingFrom ? CopyKind::kStreaming : CopyKind::kCached;
}

Outcome copy_batches(const Descriptors& work, const CopyChecks& checks) {
  const Extent extent = measure(work);
  prepare_guarded_copies();
  const LocalCopy copy(work, checks, copy_kind(extent.bytes));
  CopyPool& pool = CopyPool::instance();
  const Division division = division_for(extent, pool.threads(), kMaxIovecs);
  if (division.single) {
    return copy.batch({0, 0, extent.bytes});
  }
  const std::vector<Batch> batches = divide(work, division.batch_bytes, division.batch_pieces);
  return pool.run(batches.size(), [&](std::size_t i) { return copy.batch(batches[i]); });
}

}  // namespace ldd
