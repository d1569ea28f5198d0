// Device memory, host memory that devices reach, and what a pointer is.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "state.h"

namespace fake {

namespace {

constexpr std::size_t kArena = std::size_t{64} << 30;
constexpr unsigned char kFreed = 0xDB;
constexpr const char* kName = "fake-cuda-";  // and the device

struct Memory {
  std::recursive_mutex mutex;
  Address arena = 0;
  Address next = 0;
  std::map<Address, Piece> pieces;
  std::map<Address, std::size_t> pinned;
  std::map<Address, std::size_t> allocated_on_host;
  std::array<std::atomic<std::size_t>, kMostDevices> taken{};
  std::uint64_t number = 0;
};

void read_ecc(Memory& memory);

Memory& memory() {
  static Memory* const one = [] {
    auto* const made = new Memory;
    void* const arena =
        ::mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    made->arena = reinterpret_cast<Address>(arena);
    // The whole arena is aligned, so that a first allocation is as a real one.
    made->next = (made->arena + kGranularity - 1) / kGranularity * kGranularity;
    read_ecc(*made);
    return made;
  }();
  return *one;
}

}  // namespace
}  // namespace fake

extern "C" void fake_cuda_poison(std::uint64_t address, std::size_t size);

namespace fake {
namespace {

void read_ecc(Memory& memory) {
  const char* const text = std::getenv("FAKE_CUDA_ECC");
  if (text != nullptr) {
    char* end = nullptr;
    const std::uint64_t offset = std::strtoull(text, &end, 0);
    fake_cuda_poison(memory.next + offset, std::strtoull(end + 1, nullptr, 0));
  }
}

}  // namespace

std::shared_ptr<Backing> Backing::make(std::size_t size, int device) {
  const std::size_t whole = (size + kPage - 1) / kPage * kPage;
  if (taken(device) + whole > capacity()) {
    return nullptr;
  }
  const int fd = ::memfd_create((kName + std::to_string(device)).c_str(), MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(whole)) != 0) {
    ::close(fd);
    return nullptr;
  }
  return of_file(fd, whole, device, true);
}

std::shared_ptr<Backing> Backing::of_file(int fd, std::size_t size, int device, bool own) {
  void* const data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    ::close(fd);
    return nullptr;
  }
  if (own) {
    memory().taken.at(static_cast<std::size_t>(device)) += size;
  }
  return std::make_shared<Backing>(fd, static_cast<std::byte*>(data), size, device, own);
}

int device_of_file(int fd) {
  std::array<char, 64> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const std::string mark = std::string("/memfd:") + kName;
  if (::readlink(link.c_str(), target.data(), target.size() - 1) < 0) {
    return -1;
  }
  const std::string found(target.data());
  return found.starts_with(mark) ? std::stoi(found.substr(mark.size())) : -1;
}

std::size_t taken(int device) { return memory().taken.at(static_cast<std::size_t>(device)); }

Backing::~Backing() {
  if (own) {
    memory().taken.at(static_cast<std::size_t>(device)) -= size;
  }
  ::munmap(data, size);
  ::close(fd);
}

std::recursive_mutex& memory_mutex() { return memory().mutex; }
std::map<Address, Piece>& pieces() { return memory().pieces; }
std::uint64_t next_number() { return ++memory().number; }

bool in_arena(Address address) {
  return address >= memory().arena && address < memory().arena + kArena;
}

// One range begins where the one before ends, as a GPU's often do. Addresses are not used twice,
// except those of the last range, so that a driver's habit of giving them again is kept.
Address reserve_addresses(std::size_t size, std::size_t alignment) {
  Memory& all = memory();
  const Address begin = (all.next + alignment - 1) / alignment * alignment;
  const std::size_t whole = (size + kPage - 1) / kPage * kPage;
  if (begin + whole > all.arena + kArena) {
    return 0;
  }
  all.next = begin + whole;
  return begin;
}

std::map<Address, Piece>::iterator piece_of(Address address) {
  auto& all = pieces();
  auto after = all.upper_bound(address);
  if (after == all.begin()) {
    return all.end();
  }
  --after;
  return address - after->first < after->second.size ? after : all.end();
}

bool is_pinned(Address address, std::size_t size) {
  const std::lock_guard lock(memory_mutex());
  auto& all = memory().pinned;
  auto after = all.upper_bound(address);
  if (after == all.begin()) {
    return false;
  }
  --after;
  return address + size <= after->first + after->second;
}

void show(Address address, const Piece& piece) {
  if (readable()) {
    ::mmap(reinterpret_cast<void*>(address), (piece.size + kPage - 1) / kPage * kPage,
           PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, piece.backing->fd,
           static_cast<off_t>(piece.offset));
  }
}

void hide(Address address, std::size_t size) {
  ::mmap(reinterpret_cast<void*>(address), (size + kPage - 1) / kPage * kPage, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

}  // namespace fake

extern "C" {

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
  FAKE_CUDA_CALL(true);
  if (size == 0) {
    return fake::kInvalidValue;
  }
  const std::lock_guard lock(fake::memory_mutex());
  auto backing = fake::Backing::make(size, fake::current()->device);
  const fake::Address begin = fake::reserve_addresses(size, fake::kPage);
  if (backing == nullptr || begin == 0) {
    return fake::kOutOfMemory;
  }
  fake::Piece piece{size, std::move(backing), 0, {}, 0, fake::next_number(), false, 0};
  fake::show(begin, piece);
  fake::pieces()[begin] = std::move(piece);
  *address = begin;
  return fake::kSuccess;
}

int cuMemFree_v2(std::uint64_t address) {
  FAKE_CUDA_CALL(true);
  // As a real one: waits for what the device is doing.
  fake::Context& context = *fake::current();
  std::vector<std::shared_ptr<fake::Stream>> streams;
  {
    const std::lock_guard lock(context.mutex);
    for (const auto& [handle, stream] : context.streams) {
      streams.push_back(stream);
    }
  }
  for (const auto& stream : streams) {
    stream->drain();
  }
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::pieces().find(address);
  if (found == fake::pieces().end() || found->second.reservation != 0 || found->second.imported) {
    return fake::kInvalidValue;
  }
  // Whoever still reads it, here or in another process, must not find the old bytes.
  std::memset(found->second.backing->data, fake::kFreed, found->second.backing->size);
  fake::hide(address, found->second.size);
  const std::size_t whole = (found->second.size + fake::kPage - 1) / fake::kPage * fake::kPage;
  fake::pieces().erase(found);
  if (address + whole == fake::memory().next) {
    fake::memory().next = address;
  }
  return fake::kSuccess;
}

int cuMemHostAlloc(void** memory, std::size_t size, unsigned) {
  FAKE_CUDA_CALL(true);
  const std::size_t whole = (size + fake::kPage - 1) / fake::kPage * fake::kPage;
  void* const data =
      ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (size == 0 || data == MAP_FAILED) {
    return fake::kOutOfMemory;
  }
  const std::lock_guard lock(fake::memory_mutex());
  fake::memory().pinned[reinterpret_cast<fake::Address>(data)] = whole;
  fake::memory().allocated_on_host[reinterpret_cast<fake::Address>(data)] = whole;
  *memory = data;
  return fake::kSuccess;
}

int cuMemFreeHost(void* memory) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  auto& all = fake::memory().allocated_on_host;
  const auto found = all.find(reinterpret_cast<fake::Address>(memory));
  if (found == all.end()) {
    return fake::kInvalidValue;
  }
  ::munmap(memory, found->second);
  fake::memory().pinned.erase(found->first);
  all.erase(found);
  return fake::kSuccess;
}

int cuMemHostRegister_v2(void* memory, std::size_t size, unsigned) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto begin = reinterpret_cast<fake::Address>(memory);
  if (size == 0 || fake::in_arena(begin)) {
    return fake::kInvalidValue;
  }
  const auto after = fake::memory().pinned.lower_bound(begin);
  if (fake::is_pinned(begin, 1) ||
      (after != fake::memory().pinned.end() && after->first < begin + size)) {
    return fake::kHostAlreadyRegistered;
  }
  fake::memory().pinned[begin] = size;
  return fake::kSuccess;
}

int cuMemHostUnregister(void* memory) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  return fake::memory().pinned.erase(reinterpret_cast<fake::Address>(memory)) == 1
             ? fake::kSuccess
             : fake::kHostNotRegistered;
}

// Of the current device, as far as this process has taken it.
int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  FAKE_CUDA_CALL(true);
  const std::size_t all = fake::capacity();
  const std::size_t taken = fake::taken(fake::current()->device);
  *free = taken < all ? all - taken : 0;
  *total = all;
  return fake::kSuccess;
}

int cuMemGetAddressRange_v2(std::uint64_t* begin, std::size_t* size, std::uint64_t address) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::piece_of(address);
  if (found == fake::pieces().end() || found->second.reservation != 0) {
    return fake::kNotFound;  // documented for what was allocated
  }
  if (begin != nullptr) {
    *begin = found->first;
  }
  if (size != nullptr) {
    *size = found->second.size;
  }
  return fake::kSuccess;
}

int cuPointerGetAttribute(void* value, int which, std::uint64_t address) {
  FAKE_CUDA_CALL(false);  // needs no context
  enum { kContext = 1, kType = 2, kNumber = 7, kManaged = 8, kOrdinal = 9, kLegacyIpc = 10 };
  enum { kBegin = 11, kSize = 12, kMapped = 13, kHandleTypes = 14 };
  enum { kMappingSize = 18, kMappingBegin = 19 };
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::piece_of(address);
  const bool on_device = found != fake::pieces().end();
  if (!on_device && !fake::is_pinned(address, 1)) {
    return fake::kInvalidValue;
  }
  if (which == kType) {
    *static_cast<int*>(value) = on_device ? 2 : 1;
  } else if (which == kManaged) {
    *static_cast<int*>(value) = 0;
  } else if (!on_device) {
    return fake::kInvalidValue;
  } else if (which == kOrdinal) {
    *static_cast<int*>(value) = found->second.backing->device;
  } else if (which == kContext) {
    *static_cast<void**>(value) = &fake::context_of(found->second.backing->device);
  } else if (which == kNumber) {
    *static_cast<std::uint64_t*>(value) = found->second.number;
  } else if (which == kLegacyIpc) {
    *static_cast<int*>(value) = found->second.reservation == 0 && !found->second.imported ? 1 : 0;
  } else if (which == kBegin || which == kSize) {
    // Of virtual memory: the reserved addresses.
    const auto [begin, size] = found->second.reservation != 0
                                   ? fake::reservation_of(address)
                                   : std::pair{found->first, found->second.size};
    *static_cast<std::uint64_t*>(value) = which == kBegin ? begin : size;
  } else if (which == kMappingBegin) {
    *static_cast<std::uint64_t*>(value) = found->first;
  } else if (which == kMappingSize) {
    *static_cast<std::size_t*>(value) = found->second.size;
  } else if (which == kMapped) {
    *static_cast<int*>(value) = 1;
  } else if (which == kHandleTypes) {
    *static_cast<std::uint64_t*>(value) = found->second.handle_types;
  } else {
    return fake::kInvalidValue;
  }
  return fake::kSuccess;
}

// Ranges of host memory that are registered.
std::size_t fake_cuda_registered() {
  const std::lock_guard lock(fake::memory_mutex());
  return fake::memory().pinned.size() - fake::memory().allocated_on_host.size();
}
}
