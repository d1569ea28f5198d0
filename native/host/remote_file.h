// Files of another process of this host: opened through /proc, checked before they are trusted.
#pragma once

#include <cstdint>

#include "base/mapped_region.h"
#include "base/unique_fd.h"

namespace ldd {

// Opens descriptor `remote_fd` of process `pid` read-only and maps its first `size_bytes`. Throws
// std::system_error when it cannot be opened, is smaller, or could still be shrunk by the peer (a
// read from the mapping would then fault).
struct RemoteFile {
  UniqueFd fd;
  MappedRegion mapping;
};
RemoteFile map_remote_file(int pid, int remote_fd, std::uint64_t size_bytes);

// Whether `pid` has the file `fd` mapped, shared, from its first byte on at [address, address +
// size_bytes), all of it, and writable if that is asked for. Throws std::system_error when
// /proc/<pid>/maps cannot be read.
bool maps_file_at(int pid, int fd, std::uint64_t address, std::uint64_t size_bytes,
                  bool writable = false);

}  // namespace ldd
