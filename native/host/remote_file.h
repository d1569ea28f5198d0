// Files of another process on this host, opened through /proc and checked before use.
#pragma once

#include <cstdint>

#include "base/mapped_region.h"
#include "base/unique_fd.h"

namespace ldd {

// Opens descriptor `remote_fd` of process `pid` read-only and maps its first `size_bytes`. Throws
// std::system_error if it cannot be opened, is smaller, or could still be shrunk by the peer: then
// a read from the mapping would fault.
struct RemoteFile {
  UniqueFd fd;
  MappedRegion mapping;
};
RemoteFile map_remote_file(int pid, int remote_fd, std::uint64_t size_bytes);

// Whether `pid` has the file `fd` mapped at [address, address + size_bytes), from its first byte
// on, shared, and writable if `writable` is set. Throws std::system_error if /proc/<pid>/maps
// cannot be read.
bool maps_file_at(int pid, int fd, std::uint64_t address, std::uint64_t size_bytes,
                  bool writable = false);

}  // namespace ldd
