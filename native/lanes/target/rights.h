// What a request may access: the entries of the local node that cover its descriptors, checked once
// and held during each batch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/outcome.h"
#include "memory/node.h"
#include "wire/frames.h"

namespace ldd {

// How the bytes of a request are moved.
enum class Access : std::uint8_t {
  kLane,      // between memory and the socket
  kChecksum,  // only their checksums are sent
  kTouch,     // read by threads of this process
  kDoorbell,  // copied by threads of this process; the key names an entry of the initiator
};

class Rights {
 public:
  Rights() = default;

  // Checks the deadline, version, key (not for kDoorbell) and every range. If all are right, the
  // entries can be taken from now on. kSystem with EOPNOTSUPP for memory of an accelerator with
  // kTouch, and for memory of several devices with kLane and kChecksum.
  Outcome check(Node& node, const wire::Request& request, std::int64_t deadline_ns, Access access,
                std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths);

  // Takes every entry for one batch. kGone when an entry or the key is no longer live.
  Outcome take(std::vector<Use>& uses) const;
  // Whether the key is live. Must be checked after the last byte too: only then do the bytes count.
  [[nodiscard]] bool key_live() const { return node_->view().live(key_); }
  void reset();

  // Whether the memory is an accelerator's.
  [[nodiscard]] bool on_device() const { return device() != kHostMemory; }
  // The accelerator that has the memory, or kHostMemory.
  [[nodiscard]] int device() const {
    return entries_.empty() ? kHostMemory : entries_.front().first->device();
  }
  // The entry that holds descriptor `i`.
  [[nodiscard]] Ref entry_of(std::size_t i) const {
    const auto& [entry, value] = entries_[holders_.empty() ? 0 : holders_[i]];
    return {entry->index(), value};
  }

 private:
  Outcome check_named(Ref cache, std::span<const std::uint64_t> addresses,
                      std::span<const std::uint64_t> lengths);
  Outcome check_any(std::span<const std::uint64_t> addresses,
                    std::span<const std::uint64_t> lengths);
  [[nodiscard]] bool reachable(Access access) const;

  Node* node_ = nullptr;
  Ref key_;
  std::int64_t deadline_ns_ = 0;
  std::vector<std::pair<std::shared_ptr<Entry>, std::uint64_t>> entries_;
  std::vector<std::uint32_t> holders_;  // per descriptor, only when there are several entries
};

}  // namespace ldd
