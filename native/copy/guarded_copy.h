// Copies, checksums and probes of memory that may be unmapped, protected or truncated: a fault ends
// the copy, not the process.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace ldd {

enum class FaultSide : std::uint8_t { kNone, kDestination, kSource };

struct CopyFault {
  FaultSide side = FaultSide::kNone;
  std::size_t piece = 0;  // which pair was being copied

  [[nodiscard]] bool none() const { return side == FaultSide::kNone; }
};

enum class CopyKind : std::uint8_t {
  kCached,     // the copy will be read again soon, or is small
  kStreaming,  // larger than the caches: stores bypass them
};

// Installs the handlers of SIGSEGV and SIGBUS on top of the present ones; cheap if they are
// installed already. Must be called before an operation's copies, from any thread.
void prepare_guarded_copies();

// Copies `count` pairs of equally long ranges. On a fault, the pair at fault is partly copied and
// the later ones are not.
CopyFault guarded_copy(const iovec* destination, const iovec* source, std::size_t count,
                       CopyKind kind);

// The same for one pair; extends the CRC-32C `sum` by the copied bytes.
CopyFault guarded_copy_and_checksum(const iovec& destination, const iovec& source, CopyKind kind,
                                    std::uint32_t& sum);

// Extends the CRC-32C `sum` by `size` bytes; false on a fault.
bool guarded_checksum(const void* data, std::size_t size, std::uint32_t& sum);

// Reads one byte of each page of the range; false on a fault.
bool guarded_probe(const void* data, std::size_t size);

}  // namespace ldd
