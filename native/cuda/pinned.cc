#include "cuda/pinned.h"

namespace ldd::cuda {

PinnedPool& PinnedPool::instance() {
  static auto* const one = new PinnedPool;  // NOLINT(cppcoreguidelines-owning-memory)
  return *one;
}

std::shared_ptr<std::byte> PinnedPool::take(const Driver& driver) {
  void* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      block = idle_.back();
      idle_.pop_back();
    }
  }
  if (block == nullptr &&
      driver.mem_host_alloc(&block, kBlockBytes, kPortable) != Result::kSuccess) {
    return nullptr;
  }
  return {static_cast<std::byte*>(block), [this, &driver](std::byte* end) { put(driver, end); }};
}

void PinnedPool::put(const Driver& driver, void* block) {
  {
    const std::lock_guard lock(mutex_);
    if (idle_.size() < kMostIdle) {
      idle_.push_back(block);
      return;
    }
  }
  driver.mem_free_host(block);
}

}  // namespace ldd::cuda
