// Memory of a GPU between processes of one host: its owner exports an allocation, or a mapping of
// virtual memory, and another process maps it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/fork.h"
#include "base/unique_fd.h"
#include "cuda/virtual_memory.h"

namespace ldd::cuda {

// By what another process maps memory. The numbers are published.
enum class Sharing : std::uint64_t {
  kNone = 0,         // by nothing: the driver makes no handle, as in containers without IPC
  kIpc = 1,          // a handle of an allocation
  kDescriptor = 2,   // a descriptor of virtual memory
  kUnshareable = 3,  // by nothing: it was made without descriptors, or belongs to a stream's pool
};

// What has one handle: an allocation, or one mapping of virtual memory, from their begin.
struct Allocation {
  Address begin = 0;
  std::size_t size = 0;
  Uuid gpu;
  Sharing sharing = Sharing::kNone;
  IpcHandle handle;     // of kIpc
  UniqueFd descriptor;  // of kDescriptor
};

// What has a GPU's address. None, with a reason, if the driver does not know it or makes no
// descriptor although the memory has them.
std::optional<Allocation> export_allocation(const Driver& driver, Address address,
                                            std::string& problem);

// Another process's allocation, mapped into this one. The destructor unmaps it, except in a forked
// child.
class Mapping {
 public:
  // Null, with a reason, if the GPU is not visible in this process, the driver refuses, or the
  // allocation is smaller than `size`.
  static std::shared_ptr<Mapping> open(const Driver& driver, const Uuid& gpu,
                                       const IpcHandle& handle, std::size_t size,
                                       std::string& problem);
  // The same for virtual memory, which this process's GPUs can only read then if their driver has
  // such a right. The caller keeps the descriptor.
  static std::shared_ptr<Mapping> open(const Driver& driver, const Uuid& gpu, int descriptor,
                                       std::size_t size, std::string& problem);
  Mapping(Device& device, Address address) : device_(device), address_(address) {}
  Mapping(Device& device, std::unique_ptr<Reservation> reserved)
      : device_(device), address_(reserved->begin()), reserved_(std::move(reserved)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  [[nodiscard]] Address address() const { return address_; }
  [[nodiscard]] int device() const { return device_.ordinal(); }

 private:
  Device& device_;
  Address address_;
  std::unique_ptr<Reservation> reserved_;  // of virtual memory
  ProcessMark mark_;
};

}  // namespace ldd::cuda
