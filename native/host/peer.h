// A peer process on the same host: its published page, its mapped segments, and its memory through
// process_vm_readv. Only ever reads from the peer and only ever writes own memory.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/fork.h"
#include "base/mapped_region.h"
#include "base/outcome.h"
#include "copy/descriptors.h"
#include "memory/node.h"

namespace ldd {

struct PeerAddress {
  int pid = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t nonce_address = 0;
  int published_fd = -1;  // in the peer
  std::uint64_t published_bytes = 0;
};

// What has to hold before, between and after the batches of a read.
struct ReadChecks {
  Ref local;  // entry of the own node that is written
  Ref link;   // guards of the peer
  Ref cache;
  Ref key;
  std::int64_t deadline_ns = 0;
  // More conditions of the caller (a served push: is the lane still open?); null = none. Not ok()
  // ends the read with that outcome. Called from several threads at once.
  std::function<Outcome()> more;
};

// A range of a sealed segment of the peer, mapped here; used while its guard (if it has one) is
// live.
struct MappedSegment {
  std::uint64_t begin = 0;  // in the peer's address space
  std::uint64_t end = 0;
  Ref guard;
  std::shared_ptr<const MappedRegion> mapping;
  const std::byte* data = nullptr;  // what is at `begin`

  [[nodiscard]] bool contains(std::uint64_t address, std::uint64_t length) const {
    return address >= begin && address <= end && length <= end - address;
  }
};
using SegmentList = std::vector<MappedSegment>;

class HostPeer : public std::enable_shared_from_this<HostPeer> {
 public:
  // Opens and maps the peer's published page through /proc/<pid>/fd and proves by reading the nonce
  // that process_vm_readv reaches this very process; throws std::system_error with a reason.
  HostPeer(std::shared_ptr<Node> node, const PeerAddress& address);
  HostPeer(const HostPeer&) = delete;
  HostPeer& operator=(const HostPeer&) = delete;
  ~HostPeer();

  // Maps a sealed segment of the peer; reads inside it become copies from the mapping while `guard`
  // (of the peer; unnamed = always) is live. Throws std::system_error with a reason, also when the
  // peer has something else than that file at that address.
  void map_segment(int remote_fd, std::uint64_t remote_address, std::uint64_t size_bytes,
                   Ref guard);
  // Reads of that range use process_vm_readv from now on: the peer has put something else there.
  void unmap_range(std::uint64_t remote_address, std::uint64_t size_bytes);
  // Reads outside [remote_address, remote_address + size_bytes) are refused from now on with
  // kDenied. Throws std::invalid_argument for a range that wraps around the address space.
  void restrict_to(std::uint64_t remote_address, std::uint64_t size_bytes);

  [[nodiscard]] const PublishedView& view() const { return view_; }
  // Copies remote ranges into local ones. Every batch re-reads the nonce, so that another process
  // under a recycled pid never counts. kGone when a guard changed, whatever was copied. When it
  // returns nothing is written any more. `sums` is empty, or as long as there are descriptors, and
  // then gets the CRC-32C of what has arrived by each of them.
  Outcome read(const Descriptors& work, const ReadChecks& checks,
               std::span<std::uint32_t> sums = {});
  // Running reads end with kCancelled; returns when none is left. Idempotent.
  void close();

 private:
  class Running;
  friend class HostRead;

  [[nodiscard]] bool closed() const { return closed_.load(std::memory_order_acquire); }
  // kDenied with the descriptor's index when one lies outside the window.
  [[nodiscard]] Outcome check_window(const Descriptors& work);
  // Reads the nonce once more: is this still the process that it was?
  [[nodiscard]] Outcome prove() const;
  // The known segments that are still in use, less [begin, end). Called with mutex_ held.
  [[nodiscard]] SegmentList segments_outside(std::uint64_t begin, std::uint64_t end) const;

  std::shared_ptr<Node> node_;
  PeerAddress address_;
  MappedRegion page_;
  PublishedView view_;
  ProcessMark mark_;
  std::atomic<bool> closed_{false};
  std::mutex mutex_;  // guards what follows
  std::condition_variable left_;
  std::size_t running_ = 0;
  std::shared_ptr<const SegmentList> segments_;
  std::uint64_t window_begin_ = 0;
  std::uint64_t window_end_ = 0;  // 0 = everything
};

}  // namespace ldd
