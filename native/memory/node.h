// One instance: its published page, its entries, and whether it is open.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "base/copy_way.h"
#include "base/unique_fd.h"
#include "memory/entries.h"
#include "memory/published.h"

namespace ldd {

class Node : public std::enable_shared_from_this<Node> {
 public:
  // Throws std::system_error if the published page cannot be created.
  Node(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity);

  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node() { close(); }

  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  // Guard 0 and its proof, for readers of local memory, which have no link.
  [[nodiscard]] Ref self() const { return self_; }
  [[nodiscard]] const Proof& own_proof() const { return own_proof_; }
  [[nodiscard]] Published& published() { return published_; }
  [[nodiscard]] const PublishedView& view() const { return published_.view(); }
  [[nodiscard]] Entries& entries() { return entries_; }

  // Also true in a forked child: an instance does not survive a fork.
  [[nodiscard]] bool closed() const {
    return closed_.load(std::memory_order_acquire) || published_.inherited();
  }
  // Marks the instance closed and kills guard 0. Lanes and their server are closed by their owners.
  // Idempotent.
  void close();

  // How the instance copies memory of GPUs.
  [[nodiscard]] CopyWay copy_way() const { return copy_way_.load(std::memory_order_relaxed); }
  void set_copy_way(CopyWay way) { copy_way_.store(way, std::memory_order_relaxed); }

  // Guards of links and pools, which peers can read and cannot consume.
  Ref open_guard();
  // Kills and frees the guard. False if it was not live at that value, or is of another kind.
  bool close_guard(Ref guard);

  // Guards of cache keys; peers can consume only these.
  Ref open_key();
  // False if the key was not live at that value (for example consumed already). Frees the slot in
  // any case.
  bool close_key(Ref key);
  // Consumes a key for a peer: kills the guard exactly once. True for the caller that did it.
  bool consume(Ref key);
  // Returns the keys that peers consumed since the last call.
  std::vector<Ref> take_consumed();
  // Readable while take_consumed() would return keys.
  [[nodiscard]] int consumed_fd() const { return consumed_event_.get(); }

 private:
  std::uint64_t incarnation_;
  Published published_;
  Entries entries_;
  Ref self_;
  Proof own_proof_;
  std::atomic<bool> closed_{false};
  std::atomic<CopyWay> copy_way_{CopyWay::kAuto};
  std::mutex guards_mutex_;
  std::unordered_set<std::uint64_t> guards_;  // of links and pools
  std::mutex keys_mutex_;
  std::unordered_set<std::uint64_t> keys_;
  std::vector<Ref> consumed_;
  UniqueFd consumed_event_;
};

}  // namespace ldd
