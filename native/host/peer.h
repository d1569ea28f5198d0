// A peer process on the same host: its published page, its mapped segments, and its memory through
// process_vm_readv. Only ever reads from the peer and only ever writes own memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

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
  Ref local;            // entry of the own node that is written
  Ref link;             // guards of the peer
  Ref cache;
  Ref key;
  std::int64_t deadline_ns = 0;
  // More conditions of the caller (a served push: is the lane still open?); null = none. Not ok()
  // ends the read with that outcome.
  std::function<Outcome()> more;
};

class HostPeer {
 public:
  // Opens and maps the peer's published page through /proc/<pid>/fd and proves by reading the nonce
  // that process_vm_readv reaches this very process; throws std::system_error with a reason.
  HostPeer(std::shared_ptr<Node> node, const PeerAddress& address);
  ~HostPeer();

  // Maps a sealed segment of the peer; reads inside it become copies from the mapping.
  void map_segment(int remote_fd, std::uint64_t remote_address, std::uint64_t size_bytes);

  [[nodiscard]] const PublishedView& view() const { return view_; }
  // Copies remote ranges into local ones. Every batch re-reads the nonce, so that another process
  // under a recycled pid never counts. kGone when a guard changed, whatever was copied.
  Outcome read(const Descriptors& work, const ReadChecks& checks);
  // Running reads end with kCancelled; returns when none is left. Idempotent.
  void close();

 private:
  struct Mapped {
    std::uint64_t remote_begin;
    std::uint64_t remote_end;
    MappedRegion mapping;
  };
  [[nodiscard]] Outcome check(const ReadChecks& checks) const;
  [[nodiscard]] const Mapped* mapped_for(std::uint64_t address, std::uint64_t length) const;

  std::shared_ptr<Node> node_;
  PeerAddress address_;
  MappedRegion page_;
  PublishedView view_;
  mutable std::shared_mutex mutex_;  // shared: a read is running; exclusive: close, map_segment
  std::vector<std::unique_ptr<Mapped>> segments_;
  std::atomic<bool> closed_{false};
};

}  // namespace ldd
