// Memory of a GPU between processes of one host: its owner makes a handle of an allocation, another
// process maps the allocation by it.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "base/fork.h"
#include "cuda/device.h"

namespace ldd::cuda {

// A whole allocation. Its handle names it from its begin; all zero if the driver makes none.
struct Allocation {
  Address begin = 0;
  std::size_t size = 0;
  int device = 0;
  Uuid gpu;
  IpcHandle handle;
};

// The allocation that has a GPU's address. None, with a reason, if the driver does not know it.
// `problem` says also why there is no handle: in a container without IPC, or for virtual memory.
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
  Mapping(Device& device, Address address) : device_(device), address_(address) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  [[nodiscard]] Address address() const { return address_; }
  [[nodiscard]] int device() const { return device_.ordinal(); }

 private:
  Device& device_;
  Address address_;
  ProcessMark mark_;
};

}  // namespace ldd::cuda
