// The library's own kernels (kernels/kernels.cu), which the driver compiles from PTX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/driver.h"

namespace ldd::cuda {

// The PTX that is committed.
extern const char* const kKernelsPtx;

// As kernels.cu has them.
struct CopyItem {
  Address to = 0;
  Address from = 0;
  std::uint64_t size = 0;
};
struct Segment {
  Address address = 0;
  std::uint64_t size = 0;
};

// Of one context, for its life. A kernel that reaches an address that is not mapped for its GPU
// ends the context: callers confirm each range before.
class Kernels {
 public:
  // Loads them into the context that is current; `problem` says why it cannot, for example because
  // the GPU or the driver is too old.
  static Kernels load(const Driver& driver, std::string& problem);

  [[nodiscard]] bool loaded() const { return copy_list_ != nullptr; }
  void unload(const Driver& driver);
  // Copies `count` items, which must lie in pinned memory until the launch has ended.
  Result copy(const Driver& driver, StreamHandle stream, const CopyItem* items,
              std::uint32_t count) const;
  // Stores the CRC-32C of `count` segments; segments and sums must lie in pinned memory.
  Result crc32c(const Driver& driver, StreamHandle stream, const Segment* segments,
                std::uint32_t count, std::uint32_t* sums) const;

 private:
  ModuleHandle module_ = nullptr;
  FunctionHandle copy_list_ = nullptr;
  FunctionHandle crc32c_list_ = nullptr;
};

}  // namespace ldd::cuda
