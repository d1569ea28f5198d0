// The initiator's side of a link's lanes: one-sided operations on the target, the peer that serves
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/outcome.h"
#include "copy/descriptors.h"
#include "lanes/activity.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// Conditions of an operation.
struct LaneChecks {
  Ref local;  // local entry that is read or written; unnamed = none
  Ref cache;  // the target's entry; index kAnyEntry = any accessible one
  Ref key;    // the target's key, for a read
  std::uint64_t version = 0;
  std::int64_t deadline_ns = 0;
};

// Reads memory of the target, which is on this host, into the local ranges.
using GatheredRead = std::function<Outcome(const Descriptors&)>;

// Thread-safe. Every operation runs on the calling thread, writes and gathering on a copy worker
// too, and ends by its deadline; those in which the target acts may wait 40 ms more until it has
// stopped.
class Lanes {
 public:
  Lanes(std::shared_ptr<Node> node, std::uint64_t link_id)
      : lanes_(std::move(node)), link_id_(link_id) {}

  // All lanes must lead to one target. Throws std::system_error.
  void add(LaneSocket socket) { lanes_.add(std::make_unique<ClientLane>(std::move(socket))); }
  [[nodiscard]] std::size_t count() const { return lanes_.count(); }
  std::size_t prune() { return lanes_.prune(); }
  // How many lanes the link needs in each direction, and what its peer asks of this process. Before
  // look_all().
  void need(std::size_t client, std::size_t served, std::shared_ptr<const LinkActivity> activity) {
    const std::lock_guard lock(needs_mutex_);
    needs_ = {client, served, std::move(activity)};
  }
  [[nodiscard]] bool complete() const {
    const std::lock_guard lock(needs_mutex_);
    return count() >= needs_.client &&
           (needs_.activity == nullptr || needs_.activity->lanes.load() >= needs_.served);
  }
  // Changes with each answer and each request of the peer.
  [[nodiscard]] std::uint64_t traffic() const {
    const std::lock_guard lock(needs_mutex_);
    return lanes_.answers() + (needs_.activity == nullptr ? 0 : needs_.activity->requests.load());
  }
  // Appends what poll(2) needs to see that the peer has closed a free lane.
  void add_free(std::vector<pollfd>& polled) const { lanes_.add_free(polled); }
  [[nodiscard]] bool wants_more() const { return lanes_.wants_more(); }
  [[nodiscard]] std::uint64_t link_id() const { return link_id_; }

  // Throw std::invalid_argument when the arrays are inconsistent (see measure()).
  Outcome read(const Descriptors& work, const LaneChecks& checks);
  Outcome write(const Descriptors& work, const LaneChecks& checks);
  // The target's threads gather the remote ranges in a buffer of their process, which `read` reads
  // (gather.h). `read` checks what must hold for the local ranges, and is called from several
  // threads at once. An outcome need not name a descriptor. kSystem with EOPNOTSUPP for long
  // ranges, and if the target does not gather for this link.
  Outcome gather(const Descriptors& work, const LaneChecks& checks, const GatheredRead& read);
  // The target's threads fetch the bytes from this process: from the local entry or, if none is
  // named, from the target's landing slots for this link; `work.local` then counts from the first
  // slot.
  Outcome push(const Descriptors& work, const LaneChecks& checks);

  // The target's threads check that they can read each page of the remote ranges. Moves no bytes.
  Outcome probe(std::span<const std::uint64_t> remote, std::span<const std::uint64_t> length,
                const LaneChecks& checks);

  Outcome consume(Ref key, std::int64_t deadline_ns);
  std::pair<Outcome, std::uint64_t> version(std::int64_t deadline_ns);
  std::pair<Outcome, std::vector<std::byte>> read_log(std::uint64_t offset, std::uint64_t size,
                                                      std::int64_t deadline_ns);
  Outcome ping(std::int64_t deadline_ns);
  // Pings each link once, all at the same time; see ldd::ping_all.
  static std::vector<Outcome> ping_all(std::span<Lanes* const> links, std::int64_t deadline_ns);

  // Ends running operations with kCancelled (or kClosed) and waits for them.
  void close() { lanes_.close(); }

 private:
  friend class ChecksumQuestion;
  Outcome transfer(wire::Kind kind, const Descriptors& work, const LaneChecks& checks);

  LaneSet lanes_;
  std::uint64_t link_id_;
  struct Needs {
    std::size_t client = 0;
    std::size_t served = 0;
    std::shared_ptr<const LinkActivity> activity;
  };
  mutable std::mutex needs_mutex_;
  Needs needs_;
};

// A request for the CRC-32C of ranges of the target's memory, which the target's threads compute
// while the caller does something else. It holds a lane until wait() returns, so its owner must not
// wait for another lane meanwhile. Not thread-safe.
class ChecksumQuestion {
 public:
  using Answer = std::pair<Outcome, std::vector<std::uint32_t>>;

  // Throws std::invalid_argument for arrays that differ in length. `lanes` must outlive it.
  ChecksumQuestion(Lanes& lanes, std::span<const std::uint64_t> remote,
                   std::span<const std::uint64_t> length, const LaneChecks& checks);
  ChecksumQuestion(const ChecksumQuestion&) = delete;
  ChecksumQuestion& operator=(const ChecksumQuestion&) = delete;
  ~ChecksumQuestion();  // gives the request up and closes its lane, unless wait() has returned

  Answer wait();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ldd
