// Copies that have memory of an accelerator on one side or both: through the accelerator's driver,
// which a program that has one has loaded. The core links to none, and is told where its functions
// are.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/outcome.h"

namespace ldd {

// Functions of the driver; each returns 0 for success.
struct DeviceDriver {
  using SetContext = int (*)(void* context);
  using Copy = int (*)(std::uint64_t destination, std::uint64_t source, std::size_t size,
                       void* stream);
  using Synchronize = int (*)(void* stream);

  SetContext set_context = nullptr;
  Copy copy = nullptr;  // in stream order; finds out by itself where each address is
  Synchronize synchronize = nullptr;
};

// One accelerator: what to make current, and where copies are queued, apart from the program's own.
struct DeviceQueue {
  void* context = nullptr;
  void* stream = nullptr;
};

// Sets the driver and the accelerators of this process, by ordinal; those without a context cannot
// be used. Before the first entry that names one of them.
void set_device_driver(const DeviceDriver& driver, std::vector<DeviceQueue> queues);

// Copies `count` pairs of equally long ranges, by way of accelerator `device`; when it returns they
// are in place, or nothing of them is under way. kSystem with ENODEV when there is no such
// accelerator, with EIO when the driver fails. From any thread.
Outcome device_copy(int device, const iovec* destination, const iovec* source, std::size_t count);

}  // namespace ldd
