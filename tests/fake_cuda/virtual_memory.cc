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
  bool imported = false;
  int users = 1;     // handles that were not released
  int mappings = 0;  // keep the memory as well
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

// Null: no such handle, or it was released.
Created* usable(std::uint64_t handle) {
  auto& all = virtual_memory().created;
  const auto found = all.find(handle);
  return found == all.end() || found->second.users == 0 ? nullptr : &found->second;
}

void drop_unused(std::uint64_t handle) {
  auto& all = virtual_memory().created;
  const auto found = all.find(handle);
  if (found != all.end() && found->second.users + found->second.mappings == 0) {
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

std::pair<Address, std::size_t> reservation_of(Address address) {
  const auto& all = virtual_memory().reservations;
  auto found = all.upper_bound(address);
  if (found == all.begin()) {
    return {0, 0};
  }
  --found;
  return address < found->first + found->second ? *found : std::pair<const Address, std::size_t>{};
}

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
      properties->location.id < 0 || properties->location.id >= fake::device_count() ||
      properties->type != 1) {
    return fake::kInvalidValue;
  }
  if (fake::virtual_denied()) {
    return fake::kNotSupported;
  }
  auto backing = fake::Backing::make(size, properties->location.id);
  if (backing == nullptr) {
    return fake::kOutOfMemory;
  }
  *handle = ++fake::virtual_memory().next;
  fake::virtual_memory().created[*handle] = {
      std::move(backing), static_cast<unsigned>(properties->handle_types), false};
  return fake::kSuccess;
}

int cuMemRelease(std::uint64_t handle) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  fake::Created* const created = fake::usable(handle);
  if (created == nullptr) {
    return fake::kInvalidValue;
  }
  --created->users;
  fake::drop_unused(handle);
  return fake::kSuccess;
}

int cuMemMap(std::uint64_t address, std::size_t size, std::size_t offset, std::uint64_t handle,
             std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  auto& all = fake::virtual_memory();
  fake::Created* const created = fake::usable(handle);
  auto reserved = all.reservations.upper_bound(address);
  if (created == nullptr || reserved == all.reservations.begin() || offset != 0 ||
      size != created->backing->size) {
    return fake::kInvalidValue;
  }
  --reserved;
  const auto next = fake::pieces().lower_bound(address);
  if (address + size > reserved->first + reserved->second ||
      (next != fake::pieces().end() && next->first < address + size)) {
    return fake::kInvalidValue;
  }
  ++created->mappings;  // memory stays while it is mapped
  fake::pieces()[address] = {size,
                             created->backing,
                             0,
                             {0, 0},
                             reserved->first,
                             fake::next_number(),
                             created->imported,
                             created->handle_types};
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
  --fake::virtual_memory().created[handle].mappings;
  fake::drop_unused(handle);
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
      const int device = access[i].location.id;
      if (access[i].location.type != 1 || device < 0 || device >= fake::device_count()) {
        return fake::kInvalidDevice;
      }
      if (device != found->second.backing->device && fake::peer_denied()) {
        return fake::kPeerAccessUnsupported;
      }
      const unsigned bit = 1U << device;
      fake::Rights& rights = found->second.rights;
      rights.readers = (access[i].flags & 1) != 0 ? rights.readers | bit : rights.readers & ~bit;
      rights.writers = access[i].flags == 3 ? rights.writers | bit : rights.writers & ~bit;
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
  ++fake::virtual_memory().created[*handle].users;
  return fake::kSuccess;
}

int cuMemGetAllocationPropertiesFromHandle(fake::Properties* properties, std::uint64_t handle) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const fake::Created* const found = fake::usable(handle);
  if (found == nullptr) {
    return fake::kInvalidValue;
  }
  *properties = {
      1, static_cast<int>(found->handle_types), {1, found->backing->device}, nullptr, {}};
  return fake::kSuccess;
}

int cuMemExportToShareableHandle(void* descriptor, std::uint64_t handle, int type, std::uint64_t) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const fake::Created* const found = fake::usable(handle);
  if (found == nullptr || type != fake::kPosixDescriptor ||
      (found->handle_types & fake::kPosixDescriptor) == 0) {
    return fake::kInvalidValue;
  }
  const int made = ::fcntl(found->backing->fd, F_DUPFD_CLOEXEC, 0);
  if (made < 0) {
    return fake::kOperatingSystem;  // too many open files
  }
  *static_cast<int*>(descriptor) = made;
  return fake::kSuccess;
}

int cuMemImportFromShareableHandle(std::uint64_t* handle, void* descriptor, int type) {
  FAKE_CUDA_CALL(true);
  struct stat status{};
  const int fd =
      ::fcntl(static_cast<int>(reinterpret_cast<std::intptr_t>(descriptor)), F_DUPFD_CLOEXEC, 0);
  const int device = fd < 0 ? -1 : fake::device_of_file(fd);
  if (type != fake::kPosixDescriptor || device < 0 || device >= fake::device_count() ||
      ::fstat(fd, &status) != 0 || status.st_size == 0) {
    ::close(fd);
    return fake::kInvalidValue;
  }
  const std::lock_guard lock(fake::memory_mutex());
  auto backing = fake::Backing::of_file(fd, static_cast<std::size_t>(status.st_size), device);
  if (backing == nullptr) {
    return fake::kInvalidValue;
  }
  *handle = ++fake::virtual_memory().next;
  fake::virtual_memory().created[*handle] = {std::move(backing), fake::kPosixDescriptor, true};
  return fake::kSuccess;
}

// Handles of created or imported memory, mappings and reservations that have not ended.
std::size_t fake_cuda_virtual() {
  const std::lock_guard lock(fake::memory_mutex());
  const auto& all = fake::virtual_memory();
  return all.created.size() + all.reservations.size();
}

// Mappings of other processes' memory that a device of this one may write.
std::size_t fake_cuda_writable_imports() {
  const std::lock_guard lock(fake::memory_mutex());
  std::size_t count = 0;
  for (const auto& [address, piece] : fake::pieces()) {
    count += piece.imported && piece.reservation != 0 && piece.rights.writers != 0 ? 1 : 0;
  }
  return count;
}
}
