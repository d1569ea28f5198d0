// Copies of many small pieces to consecutive addresses. For pieces of a few hundred bytes that is
// faster than a system call with a range for each of them.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

#include "copy/guarded_copy.h"

namespace ldd {

// Copies the pieces, one after the other, to `to`. On a fault, those before the piece at fault are
// copied. prepare_guarded_copies() must have been called; `to` must be writable.
CopyFault guarded_gather(std::byte* to, std::span<const iovec> pieces);

}  // namespace ldd
