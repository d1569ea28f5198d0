// Handles by which another process maps what was allocated. A handle names a descriptor of the
// owner's process.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "state.h"

namespace fake {

namespace {

constexpr std::uint64_t kMagic = 0x6861'6e64'6c65'2131;

struct Handle {
  std::uint64_t magic;
  std::int64_t pid;
  std::int64_t fd;
  std::uint64_t size;
  std::uint64_t number;
  std::int64_t device;
  std::uint64_t unused[2];
};
static_assert(sizeof(Handle) == 64);

struct Opened {
  Address address = 0;
  int count = 0;
};

std::map<std::pair<std::int64_t, std::uint64_t>, Opened>& opened() {  // with the mutex of memory
  static auto* const all = new std::map<std::pair<std::int64_t, std::uint64_t>, Opened>;
  return *all;
}

bool may_access(int device) { return device == current()->device || !peer_denied(); }

}  // namespace

struct RawHandle {
  char bytes[64];
};

}  // namespace fake

extern "C" {

int cuIpcGetMemHandle(fake::RawHandle* handle, std::uint64_t address) {
  FAKE_CUDA_CALL(true);
  if (fake::ipc_denied("get")) {
    return fake::kNotSupported;
  }
  const std::lock_guard lock(fake::memory_mutex());
  const auto found = fake::piece_of(address);
  if (found == fake::pieces().end() || found->second.reservation != 0 || found->second.imported) {
    return fake::kInvalidValue;
  }
  const fake::Piece& piece = found->second;
  const fake::Handle made{fake::kMagic, ::getpid(),   piece.backing->fd,
                          piece.size,   piece.number, piece.backing->device,
                          {0, 0}};
  std::memcpy(handle->bytes, &made, sizeof made);
  return fake::kSuccess;
}

int cuIpcOpenMemHandle_v2(std::uint64_t* address, fake::RawHandle raw, unsigned flags) {
  FAKE_CUDA_CALL(true);
  fake::Handle handle{};
  std::memcpy(&handle, raw.bytes, sizeof handle);
  if (flags != 1 || handle.magic != fake::kMagic) {
    return fake::kInvalidValue;
  }
  if (fake::ipc_denied("open")) {
    return fake::kNotSupported;
  }
  if (handle.pid == ::getpid()) {
    return fake::kInvalidContext;
  }
  if (handle.device >= fake::device_count() || !fake::may_access(static_cast<int>(handle.device))) {
    return fake::kPeerAccessUnsupported;
  }
  const std::lock_guard lock(fake::memory_mutex());
  fake::Opened& known = fake::opened()[{handle.pid, handle.number}];
  if (known.count == 0) {
    const std::string path =
        "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.fd);
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    const std::size_t whole = (handle.size + fake::kPage - 1) / fake::kPage * fake::kPage;
    auto backing =
        fd < 0 ? nullptr : fake::Backing::of_file(fd, whole, static_cast<int>(handle.device));
    if (backing == nullptr) {
      fake::opened().erase({handle.pid, handle.number});
      return fake::kInvalidValue;
    }
    known.address = fake::reserve_addresses(handle.size, fake::kPage);
    fake::pieces()[known.address] = {handle.size, std::move(backing),  0,    {},
                                     0,           fake::next_number(), true, 0};
  }
  ++known.count;
  *address = known.address;
  return fake::kSuccess;
}

int cuIpcCloseMemHandle(std::uint64_t address) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::memory_mutex());
  auto& all = fake::opened();
  for (auto each = all.begin(); each != all.end(); ++each) {
    if (each->second.address == address) {
      if (--each->second.count == 0) {
        fake::pieces().erase(address);
        all.erase(each);
      }
      return fake::kSuccess;
    }
  }
  return fake::kInvalidValue;
}

std::size_t fake_cuda_open_handles() {
  const std::lock_guard lock(fake::memory_mutex());
  return fake::opened().size();
}
}
