// What a copy within this process checks: the entries of its two sides, the instance, the deadline.
#pragma once

#include <cstdint>
#include <memory>

#include "base/outcome.h"
#include "memory/node.h"

namespace ldd {

// Conditions checked before each batch of a copy.
struct CopyChecks {
  Node* node = nullptr;  // null: no entries to check
  Ref destination;       // entries of the node; unnamed = nothing to check
  Ref source;
  std::int64_t deadline_ns = 0;
};

// Both entries, looked up once and used batch by batch. Keeps the node, so that it may outlive the
// call.
class CopyEntries {
 public:
  explicit CopyEntries(const CopyChecks& checks);

  // What a batch needs until it has ended.
  struct Uses {
    Use writing;
    Use reading;
  };
  // kClosed, kTimeout, kLocalGone for the destination, kGone for the source.
  [[nodiscard]] Outcome take(Uses& uses, Holder holder = Holder::kThread) const;

  // The node, or null.
  [[nodiscard]] const std::shared_ptr<Node>& node() const { return node_; }
  // Ordinals of the GPUs that have the memory, or kHostMemory.
  [[nodiscard]] int destination_device() const { return device_of(destination_); }
  [[nodiscard]] int source_device() const { return device_of(source_); }

 private:
  [[nodiscard]] std::shared_ptr<Entry> find(Ref ref) const;
  [[nodiscard]] static int device_of(const std::shared_ptr<Entry>& entry) {
    return entry == nullptr ? kHostMemory : entry->device();
  }

  std::shared_ptr<Node> node_;
  CopyChecks checks_;
  std::shared_ptr<Entry> destination_;
  std::shared_ptr<Entry> source_;
};

}  // namespace ldd
