// An owned mapping of memory, unmapped exactly once.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>
#include <utility>

namespace ldd {

class MappedRegion {
 public:
  MappedRegion() = default;
  MappedRegion(void* address, std::size_t size_bytes)
      : address_(address), size_bytes_(size_bytes) {}
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;
  MappedRegion(MappedRegion&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  MappedRegion& operator=(MappedRegion&& other) noexcept {
    if (this != &other) {
      reset();
      address_ = std::exchange(other.address_, nullptr);
      size_bytes_ = std::exchange(other.size_bytes_, 0);
    }
    return *this;
  }
  ~MappedRegion() { reset(); }

  // Maps `size_bytes` of the file `fd`; throws std::system_error.
  static MappedRegion of_file(int fd, std::size_t size_bytes, bool writable);

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(address_); }
  [[nodiscard]] std::size_t size_bytes() const { return size_bytes_; }
  [[nodiscard]] std::span<std::byte> bytes() const { return {data(), size_bytes_}; }
  [[nodiscard]] bool valid() const { return address_ != nullptr; }
  void reset() {
    if (address_ != nullptr) {
      ::munmap(address_, size_bytes_);
    }
    address_ = nullptr;
    size_bytes_ = 0;
  }

 private:
  void* address_ = nullptr;
  std::size_t size_bytes_ = 0;
};

}  // namespace ldd
