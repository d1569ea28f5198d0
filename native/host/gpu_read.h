// One running read from a peer on the same host when a GPU has the memory of either side. It runs
// on a thread of its own (cuda/job.h), so that a driver or a GPU that hangs holds up nothing else.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "copy/descriptors.h"
#include "cuda/copy.h"
#include "cuda/job.h"
#include "host/gpu_imports.h"
#include "host/peer.h"
#include "memory/entries.h"

namespace ldd {

class GpuRead final : public cuda::Job {
 public:
  // Copies the descriptors, and ignores `checks.more`, which the thread of the caller asks.
  GpuRead(std::shared_ptr<HostPeer> peer, const Descriptors& work, const ReadChecks& checks);
  // Whether a read needs it: use_gpus() was called and the peer's memory is a GPU's, or the local
  // entry is and the peer is another process.
  static bool concerns(const HostPeer& peer, const Descriptors& work, const ReadChecks& checks);

  Outcome run() override;

 private:
  [[nodiscard]] Descriptors work() const { return {local_, remote_, length_}; }
  [[nodiscard]] Outcome before_chunk() const;
  [[nodiscard]] Outcome after_all() const;
  // Finds the GPU whose stream copies, and the peer's allocations; cuts the ranges at their ends.
  [[nodiscard]] Outcome resolve();
  [[nodiscard]] Outcome find(const GpuOwner& owner, std::uint64_t remote,
                             std::shared_ptr<const GpuMapping>& found);
  [[nodiscard]] Outcome copy_all(cuda::Device& device);
  // Submits one chunk. The guards and the deadline are checked before.
  [[nodiscard]] Outcome begin_chunk(cuda::StreamCopies& copies, const Batch& chunk);
  [[nodiscard]] Outcome fetch_to(std::uint64_t staging, const Batch& chunk);

  std::shared_ptr<HostPeer> peer_;
  std::vector<std::uint64_t> local_;
  std::vector<std::uint64_t> remote_;  // once resolved, as this process addresses it
  std::vector<std::uint64_t> length_;
  ReadChecks checks_;
  std::shared_ptr<Entry> local_entry_;
  std::map<std::uint64_t, std::shared_ptr<const GpuMapping>> mappings_;  // by the first byte
  bool staged_ = false;      // the peer's memory is its host's
  bool on_one_gpu_ = false;  // all memory of the peer is of the GPU that copies
  int device_ = kHostMemory;
};

}  // namespace ldd
