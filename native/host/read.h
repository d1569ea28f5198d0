// One running read from a peer on the same host: its checks and its batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "copy/descriptors.h"
#include "copy/guarded_copy.h"
#include "host/peer.h"
#include "memory/entries.h"

namespace ldd {

class HostRead {
 public:
  // `segments` are those mapped at the start of the read. `sums` is empty, or receives the CRC-32C
  // of the bytes that arrived for each descriptor.
  HostRead(const HostPeer& peer, const Descriptors& work, const ReadChecks& checks,
           std::shared_ptr<const SegmentList> segments, std::span<std::uint32_t> sums);

  Outcome run();

 private:
  // Checks all conditions of a batch except the local entry.
  [[nodiscard]] Outcome before_batch() const;
  // Checks the peer's guards. The check after the last byte decides whether the bytes count.
  [[nodiscard]] Outcome guards() const;
  [[nodiscard]] const MappedSegment* segment_of(std::uint64_t address, std::uint64_t length) const;
  [[nodiscard]] bool all_mapped() const;

  [[nodiscard]] Outcome move_all() const;
  [[nodiscard]] Outcome batch(const Batch& batch) const;

  // summed_read.cc: with checksums, which are computed batch by batch while the bytes are in the
  // caches. All batches of a descriptor run in order on one thread.
  [[nodiscard]] Outcome move_and_sum_all() const;
  [[nodiscard]] Outcome move_and_sum(const Run& run) const;
  [[nodiscard]] Outcome sum(const Batch& batch, const Outcome& moved) const;
  [[nodiscard]] CopyFault copy_and_sum(const Batch& batch, const iovec* local, const iovec* remote,
                                       std::size_t count) const;

  [[nodiscard]] Outcome copy_mapped(const Batch& batch) const;
  [[nodiscard]] Outcome fetch(const Batch& batch) const;
  // For an entry on an accelerator; only memory of this process is copied there.
  [[nodiscard]] Outcome place_on_device(const Batch& batch) const;
  // Finishes a batch of which the kernel moved only `moved` bytes, or determines the fault.
  [[nodiscard]] Outcome finish_singly(const Batch& batch, const iovec* local, const iovec* remote,
                                      std::size_t count, std::uint64_t moved) const;
  [[nodiscard]] bool remote_readable(const iovec& range) const;

  const HostPeer& peer_;
  const Descriptors& work_;
  const ReadChecks& checks_;
  std::shared_ptr<const SegmentList> segments_;
  std::span<std::uint32_t> sums_;
  std::shared_ptr<Entry> local_entry_;
  // The peer's ranges, if bytes between the descriptors are read as well; else empty.
  std::vector<Range> registered_;
  Extent extent_;
  bool mapped_ = false;
  CopyKind kind_ = CopyKind::kCached;
};

}  // namespace ldd
