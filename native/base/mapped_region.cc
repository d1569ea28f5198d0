#include "base/mapped_region.h"

#include <cerrno>
#include <system_error>

namespace ldd {

MappedRegion MappedRegion::of_file(int fd, std::size_t size_bytes, bool writable) {
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* address = ::mmap(nullptr, size_bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (address == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "mmap");
  }
  return {address, size_bytes};
}

}  // namespace ldd
