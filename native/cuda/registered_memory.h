// Host memory that a program has allocated, known to the driver: the GPUs copy from and to it
// without the driver's buffers.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "cuda/driver.h"

namespace ldd::cuda {

// Pins host memory for all GPUs, by the context of one of them. Returns why that is not possible,
// or "". All its pages are taken.
std::string pin_memory(int ordinal, Address address, std::size_t size);

// Undoes it, before the memory is unmapped.
void unpin_memory(int ordinal, Address address);

// Bytes of a GPU's memory that are free, and all; zeros if the driver does not say.
std::pair<std::size_t, std::size_t> memory_of(int ordinal);

}  // namespace ldd::cuda
