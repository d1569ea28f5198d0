#include "copy/local_copy.h"

#include <cerrno>
#include <memory>
#include <string>
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
    Held held;
    const Outcome taken = take(held);
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

  // The GPU that must copy, or kHostMemory.
  [[nodiscard]] int device() const {
    return destination_.device() != kHostMemory ? destination_.device() : source_.device();
  }

  // All of it, through a GPU, several chunks at a time.
  [[nodiscard]] Outcome through_gpu() const {
    const cuda::Loaded loaded = cuda::present_driver();
    std::string problem;
    cuda::Device* const gpu =
        loaded.driver == nullptr ? nullptr : cuda::Device::find(*loaded.driver, device(), problem);
    if (gpu == nullptr) {
      return Outcome::failure(Code::kSystem, ENODEV);
    }
    const cuda::Current current(*loaded.driver, gpu->context());
    if (current.result() != cuda::Result::kSuccess) {
      return cuda::outcome_of(current.result());
    }
    cuda::StreamCopies copies(*gpu,
                              checks_.node == nullptr ? CopyWay::kAuto : checks_.node->copy_way());
    std::uint64_t bytes = 0;
    for (const Batch& chunk : divide(work_, cuda::kChunkBytes, cuda::kChunkPieces)) {
      const Outcome begun = begin_chunk(copies, chunk);
      if (!begun.ok()) {
        return begun;  // the destructor waits for the chunks in flight
      }
      bytes += chunk.bytes;
    }
    Outcome outcome = cuda::outcome_of(copies.finish());
    outcome.moved_bytes = outcome.ok() ? bytes : 0;
    return outcome;
  }

 private:
  // What a batch needs until its copies have ended.
  struct Held {
    Use writing;
    Use reading;
  };

  [[nodiscard]] Outcome take(Held& held) const {
    if (checks_.node != nullptr && checks_.node->closed()) {
      return Outcome::failure(Code::kClosed);
    }
    if (now_ns() >= checks_.deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    held = {destination_.use(), source_.use()};
    if (checks_.destination.named() && !held.writing) {
      return Outcome::failure(Code::kLocalGone);
    }
    const bool gone = checks_.source.named() && !held.reading;
    return gone ? Outcome::failure(Code::kGone) : Outcome{};
  }

  Outcome begin_chunk(cuda::StreamCopies& copies, const Batch& chunk) const {
    const auto held = std::make_shared<Held>();
    const Outcome taken = take(*held);
    if (!taken.ok()) {
      return taken;
    }
    std::vector<iovec> to(kMaxIovecs);
    std::vector<iovec> from(kMaxIovecs);
    const std::size_t count = fill_iovecs(work_, chunk, to.data(), from.data());
    const auto side = [&](const Side& each) {
      return each.device() == device() ? cuda::Side::kOnGpu : cuda::Side::kElsewhere;
    };
    return cuda::outcome_of(
        copies.begin({to.data(), from.data(), count, side(destination_), side(source_)}, held));
  }

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
  if (copy.device() != kHostMemory) {
    return copy.through_gpu();
  }
  CopyPool& pool = CopyPool::instance();
  const Division division = division_for(extent, pool.threads(), kMaxIovecs);
  if (division.single) {
    return copy.batch({0, 0, extent.bytes});
  }
  const std::vector<Batch> batches = divide(work, division.batch_bytes, division.batch_pieces);
  return pool.run(batches.size(), [&](std::size_t i) { return copy.batch(batches[i]); });
}

}  // namespace ldd
