// Virtual memory: addresses are reserved, memory is created, mapped and made accessible apart;
// memory that was created exportable passes between processes as a descriptor.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

namespace fake {

namespace {

constexpr unsigned kPosixDescriptor = 1;

struct Location {
  int type;
  int id;
};

struct Created {
  std::shared_ptr<Backing> backing;
  unsigned handle_types = 0;
  int references = 1;
};

struct Virtual {
  std::map<Address, std::size_t> reservations;
  std::map<std::uint64_t, Created> created;  // by handle
  std::uint64_t next = 0x1000;
};

Virtual& virtual_memory() {  // with the mutex of memory
  static auto* const one = new Virtual;
  return *one;
}

void release(std::uint64_t handle) {
  auto& all = virtual_memory().created;
  const auto found = all.find(handle);
  if (found != all.end() && --found->second.references == 0) {
    all.erase(found);
  }
}

std::uint64_t handle_of(const std::shared_ptr<Backing>& backing) {
  for (auto& [handle, created] : virtual_memory().created) {
    if (created.backing == backing) {
      return handle;
    }
  }
  return 0;
}

}  // namespace

struct Properties {
  int type;
  int handle_types;
  Location location;
  void* metadata;
  unsigned char flags[8];
};

struct Access {
  Location location;
  int flags;
};

}  // namespace fake

extern "C" {

int cuMemGetAllocationGranularity(std::size_t* size, const fake::Properties*, int) {
  FAKE_CUDA_CALL(false);
  *size = fake::kGranularity;
  return fake::kSuccess;
}

int cuMemAddressReserve(std::uint64_t* address, std::size_t size, std::size_t, std::uint64_t,
                        std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  if (size == 0 || size % fake::kGranularity != 0) {
    return fake::kInvalidValue;
  }
  const fake::Address begin = fake::reserve_addresses(size, fake::kGranularity);
  fake::virtual_memory().reservations[begin] = size;
  *address = begin;
  return begin == 0 ? fake::kOutOfMemory : fake::kSuccess;
}

int cuMemAddressFree(std::uint64_t address, std::size_t size) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  auto& all = fake::virtual_memory().reservations;
  const auto found = all.find(address);
  const auto mapped = fake::pieces().lower_bound(address);
  if (found == all.end() || found->second != size ||
      (mapped != fake::pieces().end() && mapped->first < address + size)) {
    return fake::kInvalidValue;
  }
  all.erase(found);
  return fake::kSuccess;
}

int cuMemCreate(std::uint64_t* handle, std::size_t size, const fake::Properties* properties,
                std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  if (size == 0 || size % fake::kGranularity != 0 || properties->location.type != 1 ||
      properties->location.id < 0 || properties->location.id >= fake::device_count()) {
    return fake::kInvalidValue;
  }
  auto backing = fake::Backing::make(size, properties->location.id);
  if (backing == nullptr) {
    return fake::kOutOfMemory;
  }
  *handle = ++fake::virtual_memory().next;
  fake::virtual_memory().created[*handle] = {std::move(backing),
                                             static_cast<unsigned>(properties->handle_types), 1};
  return fake::kSuccess;
}

int cuMemRelease(std::uint64_t handle) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  if (!fake::virtual_memory().created.contains(handle)) {
    return fake::kInvalidValue;
  }
  fake::release(handle);
  return fake::kSuccess;
}

int cuMemMap(std::uint64_t address, std::size_t size, std::size_t offset, std::uint64_t handle,
             std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  auto& all = fake::virtual_memory();
  const auto created = all.created.find(handle);
  auto reserved = all.reservations.upper_bound(address);
  if (created == all.created.end() || reserved == all.reservations.begin() || offset != 0 ||
      size != created->second.backing->size) {
    return fake::kInvalidValue;
  }
  --reserved;
  const auto next = fake::pieces().lower_bound(address);
  if (address + size > reserved->first + reserved->second ||
      (next != fake::pieces().end() && next->first < address + size)) {
    return fake::kInvalidValue;
  }
  ++created->second.references;  // memory stays while it is mapped
  fake::pieces()[address] = {
      size,  created->second.backing,     0, false, reserved->first, fake::next_number(),
      false, created->second.handle_types};
  return fake::kSuccess;
}

int cuMemUnmap(std::uint64_t address, std::size_t size) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::pieces().find(address);
  if (found == fake::pieces().end() || found->second.size != size ||
      found->second.reservation == 0) {
    return fake::kInvalidValue;
  }
  const std::uint64_t handle = fake::handle_of(found->second.backing);
  fake::hide(address, size);
  fake::pieces().erase(found);
  fake::release(handle);
  return fake::kSuccess;
}

int cuMemSetAccess(std::uint64_t address, std::size_t size, const fake::Access* access,
                   std::size_t count) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  for (fake::Address at = address; at < address + size;) {
    const auto found = fake::pieces().find(at);
    if (found == fake::pieces().end() || found->second.reservation == 0) {
      return fake::kInvalidValue;
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (access[i].location.id != found->second.backing->device && fake::peer_denied()) {
        return fake::kPeerAccessUnsupported;
      }
      found->second.accessible = access[i].flags == 3;
    }
    fake::show(at, found->second);
    at += found->second.size;
  }
  return fake::kSuccess;
}

int cuMemRetainAllocationHandle(std::uint64_t* handle, void* address) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::piece_of(reinterpret_cast<fake::Address>(address));
  if (found == fake::pieces().end() || found->second.reservation == 0) {
    return fake::kInvalidValue;
  }
  *handle = fake::handle_of(found->second.backing);
  ++fake::virtual_memory().created[*handle].references;
  return fake::kSuccess;
}

int cuMemGetAllocationPropertiesFromHandle(fake::Properties* properties, std::uint64_t handle) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::virtual_memory().created.find(handle);
  if (found == fake::virtual_memory().created.end()) {
    return fake::kInvalidValue;
  }
  *properties = {1,
                 static_cast<int>(found->second.handle_types),
                 {1, found->second.backing->device},
                 nullptr,
                 {}};
  return fake::kSuccess;
}

int cuMemExportToShareableHandle(void* descriptor, std::uint64_t handle, int type, std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::virtual_memory().created.find(handle);
  if (found == fake::virtual_memory().created.end() || type != fake::kPosixDescriptor ||
      (found->second.handle_types & fake::kPosixDescriptor) == 0) {
    return fake::kInvalidValue;
  }
  *static_cast<int*>(descriptor) = ::fcntl(found->second.backing->fd, F_DUPFD_CLOEXEC, 0);
  return fake::kSuccess;
}

int cuMemImportFromShareableHandle(std::uint64_t* handle, void* descriptor, int type) {
  FAKE_CUDA_CALL(true);
  struct stat status{};
  const int fd =
      ::fcntl(static_cast<int>(reinterpret_cast<std::intptr_t>(descriptor)), F_DUPFD_CLOEXEC, 0);
  if (type != fake::kPosixDescriptor || fd < 0 || ::fstat(fd, &status) != 0 ||
      status.st_size == 0) {
    ::close(fd);
    return fake::kInvalidValue;
  }
  const std::lock_guard lock(fake::memory_mutex());
  auto backing =
      fake::Backing::of_file(fd, static_cast<std::size_t>(status.st_size), fake::current()->device);
  if (backing == nullptr) {
    return fake::kInvalidValue;
  }
  *handle = ++fake::virtual_memory().next;
  fake::virtual_memory().created[*handle] = {std::move(backing), 0, 1};
  return fake::kSuccess;
}
}
