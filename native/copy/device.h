// Copies from or to memory of an accelerator, through the accelerator's driver. The core does not
// link to a driver; the caller passes the addresses of its functions.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/outcome.h"

namespace ldd {

// Functions of the driver; each returns 0 on success.
struct DeviceDriver {
  using SetContext = int (*)(void* context);
  using Copy = int (*)(std::uint64_t destination, std::uint64_t source, std::size_t size,
                       void* stream);
  using Synchronize = int (*)(void* stream);

  SetContext set_context = nullptr;
  Copy copy = nullptr;  // in stream order; the driver determines where each address is
  Synchronize synchronize = nullptr;
};

// One accelerator: the context to make current, and a stream for copies, separate from the
// program's streams.
struct DeviceQueue {
  void* context = nullptr;
  void* stream = nullptr;
};

// Sets the driver and the accelerators of this process, by ordinal; those without a context cannot
// be used. Must be called before the first entry that names one of them.
void set_device_driver(const DeviceDriver& driver, std::vector<DeviceQueue> queues);

// Copies `count` pairs of equally long ranges through accelerator `device`. When it returns, the
// bytes are in place or, after a failure, no copy is in progress. kSystem with ENODEV when there is
// no such accelerator, with EIO when the driver fails. Callable from any thread.
Outcome device_copy(int device, const iovec* destination, const iovec* source, std::size_t count);

}  // namespace ldd
