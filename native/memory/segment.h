// Memory of the pools: a sealed memfd, so that peers on the same host can map it and nobody can
// shrink it under them.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>

#include "base/mapped_region.h"
#include "base/unique_fd.h"

namespace ldd {

// A memfd of `size_bytes` sealed against shrinking, growing and further seals; throws
// std::system_error.
UniqueFd make_sealed_memory(const std::string& name, std::size_t size_bytes);

class Segment {
 public:
  // Pages are committed when first touched; throws std::system_error.
  Segment(const std::string& name, std::size_t size_bytes);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::byte* data() const { return mapping_.data(); }
  [[nodiscard]] std::size_t size_bytes() const { return mapping_.size_bytes(); }
  // Idempotent, from any thread.
  void close();
  // Closes the file alone; the memory stays.
  void close_file();

 private:
  std::mutex closing_;
  UniqueFd fd_;
  MappedRegion mapping_;
};

}  // namespace ldd
