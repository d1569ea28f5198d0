#include "memory/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace ldd {

UniqueFd make_sealed_memory(const std::string& name, std::size_t size_bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) {
    throw std::system_error(errno, std::generic_category(), "memfd_create");
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    throw std::system_error(errno, std::generic_category(), "ftruncate");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    throw std::system_error(errno, std::generic_category(), "fcntl(F_ADD_SEALS)");
  }
  return fd;
}

Segment::Segment(const std::string& name, std::size_t size_bytes)
    : fd_(make_sealed_memory(name, size_bytes)),
      mapping_(MappedRegion::of_file(fd_.get(), size_bytes, true)) {
  // Huge pages, where the system allows them for shared memory; a failure only costs speed.
  ::madvise(mapping_.data(), mapping_.size_bytes(), MADV_HUGEPAGE);
}

void Segment::close() {
  const std::lock_guard lock(closing_);
  mapping_.reset();
  fd_.reset();
}

void Segment::close_file() {
  const std::lock_guard lock(closing_);
  fd_.reset();
}

}  // namespace ldd
