// The initiator's side of a link's lanes: one-sided operations on the peer that serves them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/outcome.h"
#include "copy/descriptors.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// What has to hold for an operation.
struct LaneChecks {
  Ref local;  // own entry that is read or written; unnamed = none
  Ref cache;  // the peer's entry; index kAnyEntry = any that is accessible
  Ref key;    // the peer's key, of a read
  std::uint64_t version = 0;
  std::int64_t deadline_ns = 0;
};

// Thread-safe; every operation runs on the thread that calls, large writes on a copy worker too,
// and ends by its deadline (those that let the target act may take 40 ms more to see it stop).
class Lanes {
 public:
  Lanes(std::shared_ptr<Node> node, std::uint64_t link_id)
      : lanes_(std::move(node)), link_id_(link_id) {}

  // All of them lead to one target. Throws std::system_error.
  void add(LaneSocket socket) { lanes_.add(std::make_unique<ClientLane>(std::move(socket))); }
  [[nodiscard]] std::size_t count() const { return lanes_.count(); }
  std::size_t prune() { return lanes_.prune(); }
  [[nodiscard]] std::uint64_t link_id() const { return link_id_; }

  // Throw std::invalid_argument when the arrays are inconsistent (see measure()).
  Outcome read(const Descriptors& work, const LaneChecks& checks);
  Outcome write(const Descriptors& work, const LaneChecks& checks);
  // The target's threads fetch the bytes from this process: from the local entry, or, where none is
  // named, from landing slots that the target has for this link; `work.local` then counts from the
  // first of them.
  Outcome push(const Descriptors& work, const LaneChecks& checks);

  // The target's threads look whether they can read each page of the remote ranges; no byte moves.
  Outcome probe(std::span<const std::uint64_t> remote, std::span<const std::uint64_t> length,
                const LaneChecks& checks);

  Outcome consume(Ref key, std::int64_t deadline_ns);
  std::pair<Outcome, std::uint64_t> version(std::int64_t deadline_ns);
  std::pair<Outcome, std::vector<std::byte>> read_log(std::uint64_t offset, std::uint64_t size,
                                                      std::int64_t deadline_ns);
  Outcome ping(std::int64_t deadline_ns);
  // Each of these links once, all at the same time; see ldd::ping_all.
  static std::vector<Outcome> ping_all(std::span<Lanes* const> links, std::int64_t deadline_ns);

  // Running operations end with kCancelled (or kClosed); waits for them.
  void close() { lanes_.close(); }

 private:
  friend class ChecksumQuestion;
  Outcome transfer(wire::Kind kind, const Descriptors& work, const LaneChecks& checks);

  LaneSet lanes_;
  std::uint64_t link_id_;
};

// Asks for the CRC-32C of ranges of the peer's memory, which its threads compute while the caller
// does something else. It has a lane until it was answered, so its owner must not wait for another
// one meanwhile. Not thread-safe.
class ChecksumQuestion {
 public:
  using Answer = std::pair<Outcome, std::vector<std::uint32_t>>;

  // Throws std::invalid_argument for arrays that differ in length; `lanes` has to outlive it.
  ChecksumQuestion(Lanes& lanes, std::span<const std::uint64_t> remote,
                   std::span<const std::uint64_t> length, const LaneChecks& checks);
  ChecksumQuestion(const ChecksumQuestion&) = delete;
  ChecksumQuestion& operator=(const ChecksumQuestion&) = delete;
  ~ChecksumQuestion();  // gives up on it, which costs the lane

  Answer wait();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ldd
