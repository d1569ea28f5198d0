// One instance as the native core sees it: its published page, its entries, and whether it is open.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "base/unique_fd.h"
#include "memory/entries.h"
#include "memory/published.h"

namespace ldd {

class Node : public std::enable_shared_from_this<Node> {
 public:
  // Throws std::system_error when the published page cannot be had.
  Node(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity);

  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node() { close(); }

  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  // Guard 0 and its proof, which readers of own memory use: they have no link.
  [[nodiscard]] Ref self() const { return self_; }
  [[nodiscard]] const Proof& own_proof() const { return own_proof_; }
  [[nodiscard]] Published& published() { return published_; }
  [[nodiscard]] const PublishedView& view() const { return published_.view(); }
  [[nodiscard]] Entries& entries() { return entries_; }

  // True in a forked child too: an instance does not survive a fork.
  [[nodiscard]] bool closed() const {
    return closed_.load(std::memory_order_acquire) || published_.inherited();
  }
  // Marks the instance closed and kills guard 0; the lane server and clients are closed by their
  // owners (bind/bind_memory.cc) right after. Idempotent.
  void close();

  // Guards of links and pools, which peers look at and cannot consume.
  Ref open_guard();
  // Kills and frees it; false when it was not live at that value, or is a guard of another kind.
  bool close_guard(Ref guard);

  // Guards that name cache keys; only these can be consumed by peers.
  Ref open_key();
  // False when the key was not live at that value (consumed before, say); its slot is free then
  // too.
  bool close_key(Ref key);
  // A peer consumes a key: live -> dead exactly once. True for the one that did it.
  bool consume(Ref key);
  // Keys that peers consumed since the last call.
  std::vector<Ref> take_consumed();
  // Readable while take_consumed() has something to give.
  [[nodiscard]] int consumed_fd() const { return consumed_event_.get(); }

 private:
  std::uint64_t incarnation_;
  Published published_;
  Entries entries_;
  Ref self_;
  Proof own_proof_;
  std::atomic<bool> closed_{false};
  std::mutex guards_mutex_;
  std::unordered_set<std::uint64_t> guards_;  // of links and pools
  std::mutex keys_mutex_;
  std::unordered_set<std::uint64_t> keys_;
  std::vector<Ref> consumed_;
  UniqueFd consumed_event_;
};

}  // namespace ldd
