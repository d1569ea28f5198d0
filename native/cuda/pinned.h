// Pinned host memory, which GPUs reach at its address.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/driver.h"

namespace ldd::cuda {

// Blocks of one size that are used again, so that no transfer has to pin memory. Thread-safe.
class PinnedPool {
 public:
  static constexpr std::size_t kBlockBytes = std::size_t{8} << 20;
  static constexpr std::size_t kMostIdle = 8;  // more are freed

  // Of the process.
  static PinnedPool& instance();

  // A block, which returns to the pool with its last owner; null if the driver has none. A context
  // must be current, also when the block ends.
  std::shared_ptr<std::byte> take(const Driver& driver);

 private:
  void put(const Driver& driver, void* block);

  std::mutex mutex_;
  std::vector<void*> idle_;
};

}  // namespace ldd::cuda
