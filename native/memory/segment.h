// Memory of pools: a sealed memfd, which peers on the same host can map and which cannot be shrunk
// while they read it.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>

#include "base/mapped_region.h"
#include "base/unique_fd.h"

namespace ldd {

// Creates a memfd of `size_bytes`, sealed against shrinking, growing and further seals. Throws
// std::system_error.
UniqueFd make_sealed_memory(const std::string& name, std::size_t size_bytes);

class Segment {
 public:
  // Pages are committed at the first access. Throws std::system_error.
  Segment(const std::string& name, std::size_t size_bytes);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::byte* data() const { return mapping_.data(); }
  [[nodiscard]] std::size_t size_bytes() const { return mapping_.size_bytes(); }
  // Idempotent. Callable from any thread.
  void close();
  // Closes only the file; the memory stays.
  void close_file();

 private:
  std::mutex closing_;
  UniqueFd fd_;
  MappedRegion mapping_;
};

}  // namespace ldd
