// One running read from a peer on the same host: its checks and its batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "copy/descriptors.h"
#include "copy/guarded_copy.h"
#include "host/peer.h"
#include "memory/entries.h"

namespace ldd {

class HostRead {
 public:
  // `segments` are the peer's mapped ones at the start of the read.
  HostRead(const HostPeer& peer, const Descriptors& work, const ReadChecks& checks,
           std::shared_ptr<const SegmentList> segments);

  Outcome run();

 private:
  // Everything that must hold before a batch, except the local entry.
  [[nodiscard]] Outcome before_batch() const;
  // The peer's guards; the last word on whether what was read counts.
  [[nodiscard]] Outcome guards() const;
  [[nodiscard]] const MappedSegment* segment_of(std::uint64_t address, std::uint64_t length) const;
  [[nodiscard]] bool all_mapped() const;

  [[nodiscard]] Outcome batch(const Batch& batch) const;
  [[nodiscard]] Outcome copy_mapped(const Batch& batch) const;
  [[nodiscard]] Outcome fetch(const Batch& batch) const;
  // For an entry on an accelerator, which only memory of this very process is copied to.
  [[nodiscard]] Outcome place_on_device(const Batch& batch) const;
  // Finishes a batch of which the kernel moved only `moved` bytes, or finds out why it cannot.
  [[nodiscard]] Outcome finish_singly(const Batch& batch, const iovec* local, const iovec* remote,
                                      std::size_t count, std::uint64_t moved) const;
  [[nodiscard]] bool remote_readable(const iovec& range) const;

  const HostPeer& peer_;
  const Descriptors& work_;
  const ReadChecks& checks_;
  std::shared_ptr<const SegmentList> segments_;
  std::shared_ptr<Entry> local_entry_;
  Extent extent_;
  bool mapped_ = false;
  CopyKind kind_ = CopyKind::kCached;
};

}  // namespace ldd
