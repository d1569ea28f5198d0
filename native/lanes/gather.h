// Gathers scattered pieces of registered memory into one buffer, from which they travel as one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lanes/cursor.h"

namespace ldd {

struct Gathered {
  std::uint64_t bytes = 0;  // of whole pieces before the one at fault, or all
  bool fault = false;
};

// Copies what the position and the next pieces hold to `room`, in order, as much as fits.
Gathered gather(Cursor cursor, std::span<std::byte> room);

}  // namespace ldd
