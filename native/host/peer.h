// A peer process on the same host: its published page, its mapped segments, and its memory through
// process_vm_readv. Only reads from the peer, and only writes local memory.
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
#include "host/gpu_imports.h"
#include "host/presence.h"
#include "memory/node.h"

namespace ldd {

// What the peer states about itself, none of which is trusted, and the proof that it must show.
struct PeerAddress {
  int pid = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t page_address = 0;  // of its published page, in the peer
  int published_fd = -1;           // in the peer
  std::uint64_t published_bytes = 0;
  std::uint64_t link_index = 0;  // the peer's guard of the link
  Proof proof{};                 // shown beside that guard on its page
};

// Conditions checked before, between and after the batches of a read.
struct ReadChecks {
  Ref local;  // local entry that is written
  Ref link;   // guards of the peer
  Ref cache;
  Ref key;
  std::int64_t deadline_ns = 0;
  // A further condition of the caller (for a push: the lane is still open); null = none. Not ok
  // ends the read with that outcome. Called from several threads at once.
  std::function<Outcome()> more;
};

// A range of a sealed segment of the peer, mapped into this process; used while its guard, if it
// has one, is live.
struct MappedSegment {
  std::uint64_t begin = 0;  // in the peer's address space
  std::uint64_t end = 0;
  Ref guard;
  std::shared_ptr<const MappedRegion> mapping;
  const std::byte* data = nullptr;  // the mapped bytes of `begin`

  [[nodiscard]] bool contains(std::uint64_t address, std::uint64_t length) const {
    return address >= begin && address <= end && length <= end - address;
  }
};
using SegmentList = std::vector<MappedSegment>;

class HostPeer : public std::enable_shared_from_this<HostPeer> {
 public:
  // Opens and maps the peer's published page through /proc/<pid>/fd, and verifies that the process
  // is the other end of the link: it has that very page mapped writable, as only its owner has, and
  // process_vm_readv finds the link's proof there. Throws std::system_error with a reason.
  HostPeer(std::shared_ptr<Node> node, const PeerAddress& address);
  // Returns a reader of local memory.
  static std::shared_ptr<HostPeer> own(std::shared_ptr<Node> node);
  HostPeer(const HostPeer&) = delete;
  HostPeer& operator=(const HostPeer&) = delete;
  ~HostPeer();

  // Maps a sealed segment of the peer; reads inside it become copies from the mapping while `guard`
  // (of the peer; unnamed = always) is live. Throws std::system_error with a reason, also if the
  // peer does not have that file at that address.
  void map_segment(int remote_fd, std::uint64_t remote_address, std::uint64_t size_bytes,
                   Ref guard);
  // Reads of that range use process_vm_readv from now on: the peer has remapped it.
  void unmap_range(std::uint64_t remote_address, std::uint64_t size_bytes);
  // Reads outside [remote_address, remote_address + size_bytes) are refused from now on with
  // kDenied. Throws std::invalid_argument for a range that wraps around the address space.
  void restrict_to(std::uint64_t remote_address, std::uint64_t size_bytes);

  [[nodiscard]] const PublishedView& view() const { return view_; }
  // Whether restrict_to() was called.
  [[nodiscard]] bool restricted();
  // For a restricted reader and an unnamed entry, the range of restrict_to(); else the ranges that
  // the peer's page lists for the entry. May be empty.
  [[nodiscard]] std::vector<Range> ranges(Ref entry);
  // Copies remote ranges into local ones. Every batch re-reads the proof, so that another process
  // under a recycled pid never counts. kSystem with EAGAIN when pages of the peer are absent, which
  // only the owner can bring in. kGone when a guard changed, whatever was copied. When it returns,
  // nothing is written any more, but for a GPU that hangs (gpu_read.h). kSystem with EOPNOTSUPP for
  // memory of a GPU that cannot be mapped; gpu_problem() says why. `sums` must be empty, or as long
  // as there are descriptors; then it receives the CRC-32C of the bytes that arrived for each of
  // them.
  Outcome read(const Descriptors& work, const ReadChecks& checks,
               std::span<std::uint32_t> sums = {});
  // Lets reads map memory of GPUs that the peer exports. Before this is called, its handles, which
  // are the peer's bytes, never go to the driver.
  void use_gpus() { uses_gpus_.store(true, std::memory_order_release); }
  // Why memory of a GPU could not be mapped, most recently; "" if there was no such failure.
  [[nodiscard]] std::string gpu_problem() { return gpu_imports_.problem(); }
  // The peer's allocations of GPUs that are mapped.
  [[nodiscard]] std::size_t gpu_mappings() { return gpu_imports_.count(); }
  // Whether all pages of the remote ranges are in memory, so that no thread would wait for them.
  [[nodiscard]] bool all_present(const Descriptors& work) const;
  // Ends running reads with kCancelled and waits for them. Idempotent.
  void close();

 private:
  class Running;
  friend class HostRead;
  friend class GpuRead;

  [[nodiscard]] bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Has a thread of its own do it (gpu_read.h), and leaves it when a condition fails.
  [[nodiscard]] Outcome read_gpu(const Descriptors& work, const ReadChecks& checks);
  // kDenied with the descriptor's index when one lies outside the window.
  [[nodiscard]] Outcome check_window(const Descriptors& work);
  // Whether the page with the proof is in the peer's memory. The answer is cached for a moment.
  [[nodiscard]] bool proof_present() const;
  // Reads the proof again, to verify that this is still the same process.
  [[nodiscard]] Outcome prove() const;
  // The segments whose guards are live, without [begin, end). Called with mutex_ held.
  [[nodiscard]] SegmentList segments_outside(std::uint64_t begin, std::uint64_t end) const;

  std::shared_ptr<Node> node_;
  PeerAddress address_;
  MappedRegion page_;
  PublishedView view_;
  PagePresence presence_;
  std::uint64_t proof_address_ = 0;  // in the peer
  mutable std::atomic<std::int64_t> proof_seen_ns_{0};
  ProcessMark mark_;
  std::atomic<bool> uses_gpus_{false};
  GpuImports gpu_imports_;
  std::atomic<bool> closed_{false};
  std::mutex mutex_;  // guards what follows
  std::condition_variable left_;
  std::size_t running_ = 0;
  std::shared_ptr<const SegmentList> segments_;
  std::uint64_t window_begin_ = 0;
  std::uint64_t window_end_ = 0;  // 0 = everything
};

}  // namespace ldd
