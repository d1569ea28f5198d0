// Copies from, to and between GPUs, in streams of the library.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <functional>

#include "base/outcome.h"
#include "cuda/device.h"

namespace ldd::cuda {

// What a result of the driver means for a transfer: kLocalFault for memory at fault (an
// uncorrectable error, an address that the GPU cannot reach), else kSystem with EIO.
Outcome outcome_of(Result result);

// Submits the copies of `count` pairs of equally long ranges; each address is of a GPU or of the
// host. The stream's context must be current. `moved` counts the bytes of those submitted.
Result submit(const Driver& driver, StreamHandle stream, const iovec* destination,
              const iovec* source, std::size_t count, std::uint64_t& moved);

// Waits until a stream is idle, by asking again and again, so that the driver never holds the
// thread. An error of the driver means idle as well: its context is dead. `go_on` is asked
// meanwhile; when it returns false the wait ends with kNotReady, and the work goes on.
Result wait(const Driver& driver, StreamHandle stream, const std::function<bool()>& go_on = {});

// Copies `count` pairs of equally long ranges through the GPU `device`. When it returns, the bytes
// are in place or, after a failure, no copy is in progress. kSystem with ENODEV when there is no
// such GPU. Callable from any thread, whose current context it does not change.
Outcome copy_pairs(int device, const iovec* destination, const iovec* source, std::size_t count);

}  // namespace ldd::cuda
