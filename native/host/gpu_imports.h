// A peer's allocations of GPUs, mapped into this process: one mapping for each, or for each mapping
// of the peer's virtual memory. It ends with the owner's row for it, with a remap, or with the
// link.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/outcome.h"
#include "cuda/sharing.h"
#include "memory/published.h"

namespace ldd {

struct GpuMapping {
  Range range;  // in the peer's address space
  Ref row;
  std::shared_ptr<cuda::Mapping> mapping;  // null: the peer is this process
  std::uint64_t local_begin = 0;           // where the range begins for this process
  int device = 0;                          // its GPU's ordinal in this process

  [[nodiscard]] bool contains(std::uint64_t address, std::uint64_t length) const {
    return address >= range.begin && address <= range.end && length <= range.end - address;
  }
};

// The process that a link's peer is.
struct GpuOwner {
  int pid = 0;
  bool in_process = false;
  std::function<Outcome()> prove;  // that it still is
};

// Thread-safe. A mapping that is in use ends with its last user.
class GpuImports {
 public:
  // The mapping that has an address of the peer's entry `cache`; it is made at first use, and kept
  // while the entry is live. Null with an outcome, kSystem with EOPNOTSUPP if the peer exports no
  // such memory or it cannot be mapped: problem() says why.
  std::shared_ptr<const GpuMapping> find(const PublishedView& view, const GpuOwner& owner,
                                         Ref cache, std::uint64_t address, Outcome& outcome);
  // Drops what is mapped of a range; waits a moment for reads that use it.
  void forget(std::uint64_t address, std::uint64_t size);
  // Drops everything, and keeps nothing from now on.
  void clear();
  [[nodiscard]] std::string problem();
  [[nodiscard]] std::size_t count();

 private:
  // Drops mappings whose rows have ended.
  [[nodiscard]] std::shared_ptr<const GpuMapping> known(const PublishedView& view,
                                                        std::uint64_t address);
  [[nodiscard]] static std::shared_ptr<const GpuMapping> open(const PublishedView& view,
                                                              const GpuOwner& owner,
                                                              std::uint64_t address,
                                                              Outcome& outcome,
                                                              std::string& problem);

  std::mutex mutex_;
  std::vector<std::shared_ptr<const GpuMapping>> mappings_;
  std::string problem_;
  bool closed_ = false;
};

}  // namespace ldd
