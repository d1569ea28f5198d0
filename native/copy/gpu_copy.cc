#include "copy/gpu_copy.h"

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/interrupt.h"
#include "copy/gpu_chunks.h"
#include "cuda/copy.h"
#include "cuda/job.h"

namespace ldd {

namespace {

class GpuCopy final : public cuda::Job {
 public:
  GpuCopy(const Descriptors& work, CopyEntries entries)
      : to_(work.local.begin(), work.local.end()),
        from_(work.remote.begin(), work.remote.end()),
        length_(work.length.begin(), work.length.end()),
        entries_(std::move(entries)) {}

  Outcome run() override {
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
    const auto& node = entries_.node();
    cuda::StreamCopies copies(*gpu, node == nullptr ? CopyWay::kAuto : node->copy_way());
    return copy_in_chunks(copies, divide(work(), cuda::kChunkBytes, cuda::kChunkPieces),
                          [&](const Batch& chunk) { return begin_chunk(copies, chunk); });
  }

 private:
  [[nodiscard]] Descriptors work() const { return {to_, from_, length_}; }
  // The GPU that copies.
  [[nodiscard]] int device() const {
    const int destination = entries_.destination_device();
    return destination != kHostMemory ? destination : entries_.source_device();
  }
  [[nodiscard]] cuda::Side side_of(int device_of_memory) const {
    return device_of_memory == device() ? cuda::Side::kOnGpu : cuda::Side::kElsewhere;
  }

  Outcome begin_chunk(cuda::StreamCopies& copies, const Batch& chunk) const {
    if (const cuda::Result room = copies.make_room(); room != cuda::Result::kSuccess) {
      return cuda::outcome_of(room);
    }
    if (stopping()) {
      return Outcome::failure(Code::kTimeout);
    }
    const auto uses = std::make_shared<CopyEntries::Uses>();
    const Outcome taken = entries_.take(*uses, Holder::kDriver);
    if (!taken.ok()) {
      return taken;
    }
    std::vector<iovec> to(kMaxIovecs);
    std::vector<iovec> from(kMaxIovecs);
    const std::size_t count = fill_iovecs(work(), chunk, to.data(), from.data());
    const cuda::Chunk pieces{to.data(), from.data(), count, side_of(entries_.destination_device()),
                             side_of(entries_.source_device())};
    return cuda::outcome_of(copies.begin(pieces, uses));
  }

  std::vector<std::uint64_t> to_;
  std::vector<std::uint64_t> from_;
  std::vector<std::uint64_t> length_;
  CopyEntries entries_;
};

}  // namespace

Outcome copy_through_gpu(const Descriptors& work, CopyEntries entries, std::int64_t deadline_ns) {
  const std::shared_ptr<Node> node = entries.node();
  const auto more = [&node] {
    if (node != nullptr && node->closed()) {
      return Outcome::failure(Code::kClosed);
    }
    const bool ends = Interruptible::due(false) && Interruptible::ask();
    return ends ? Outcome::failure(Code::kCancelled) : Outcome{};
  };
  const auto job = std::make_shared<GpuCopy>(work, std::move(entries));
  return cuda::run_job(job, deadline_ns, more);
}

}  // namespace ldd
