// Virtual memory of GPUs: memory is made or taken from another process, addresses are reserved, and
// the one is mapped at the other.
#pragma once

#include <cstddef>
#include <map>
#include <memory>

#include "base/fork.h"
#include "base/unique_fd.h"
#include "cuda/device.h"

namespace ldd::cuda {

// Memory without an address. The device's context must be current for what makes it. The destructor
// gives it up, except in a forked child; the memory lives on while it is mapped, or another process
// or a descriptor has it.
class Physical {
 public:
  // Makes memory that other processes can map by a descriptor. `size` is a multiple of
  // granularity().
  static Result make(Device& device, std::size_t size, Physical& made);
  // The memory that is mapped at an address; kInvalidValue for memory of another kind.
  static Result at(Device& device, Address address, Physical& found);
  // The memory that a descriptor names; the caller keeps the descriptor.
  static Result of_descriptor(Device& device, int fd, Physical& found);

  Physical() = default;
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;
  Physical(Physical&& other) noexcept { swap(other); }
  Physical& operator=(Physical&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Physical();

  [[nodiscard]] MemoryHandle handle() const { return handle_; }
  // Not kSuccess: it was made without descriptors, or the process has too many files open.
  Result export_descriptor(UniqueFd& made) const;

 private:
  Physical(Device& device, MemoryHandle handle) : device_(&device), handle_(handle) {}
  void swap(Physical& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
  }

  Device* device_ = nullptr;  // null: none
  MemoryHandle handle_ = 0;
  ProcessMark mark_;
};

// The size of which that of each piece of memory, and of each reservation, is a multiple.
Result granularity(const Device& device, std::size_t& size);

// A range of addresses in which memory can be mapped. The destructor unmaps it, except in a forked
// child.
class Reservation {
 public:
  static Result make(Device& device, std::size_t size, std::unique_ptr<Reservation>& made);
  Reservation(Device& device, Address begin, std::size_t size)
      : device_(device), begin_(begin), size_(size) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation();

  [[nodiscard]] Address begin() const { return begin_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] Device& device() const { return device_; }

  // Maps memory, from its first byte, for the device and for those that can access it. After a
  // failure nothing is mapped there.
  Result map(std::size_t offset, std::size_t size, const Physical& memory, int access);
  // Ends a mapping that begins there. No work with it may be in progress.
  Result unmap(std::size_t offset);

 private:
  Result allow(std::size_t offset, std::size_t size, int access);

  Device& device_;
  Address begin_;
  std::size_t size_;
  std::map<std::size_t, std::size_t> mapped_;  // size by offset
  ProcessMark mark_;
};

}  // namespace ldd::cuda
