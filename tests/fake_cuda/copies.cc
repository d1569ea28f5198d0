// Copies: at once, in a stream, and many in one call. Host memory is reached by process_vm_*, so
// that a bad page is an error and not a crash; a copy in a stream reads its source when its turn
// comes.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "state.h"

namespace fake {

namespace {

std::atomic<std::uint64_t> moved_bytes{0};

struct Part {
  std::byte* data;
  std::size_t size;
};

bool permitted(const Piece& piece, bool writes) {
  const unsigned devices = writes ? piece.rights.writers : piece.rights.readers;
  return acting_device() < 0 || (devices & (1U << acting_device())) != 0;
}

// The bytes behind device addresses. What was allocated ends a range; adjacent mappings of one
// reservation may be crossed.
int parts_of(Address address, std::size_t size, bool writes, std::vector<Part>& parts,
             std::vector<std::shared_ptr<Backing>>& held) {
  const std::lock_guard lock(memory_mutex());
  Address reservation = 0;
  while (size > 0) {
    const auto found = piece_of(address);
    if (found == pieces().end() ||
        (!parts.empty() && (reservation == 0 || found->second.reservation != reservation))) {
      return kInvalidValue;
    }
    const Piece& piece = found->second;
    if (!permitted(piece, writes)) {
      return kIllegalAddress;
    }
    reservation = piece.reservation;
    const std::size_t inside = address - found->first;
    const std::size_t count = std::min(size, piece.size - inside);
    parts.push_back({piece.backing->data + piece.offset + inside, count});
    held.push_back(piece.backing);
    address += count;
    size -= count;
  }
  return kSuccess;
}

// Between host memory and the bytes of device addresses.
int copy_host(Address host, const std::vector<Part>& parts, bool to_host) {
  for (const Part& part : parts) {
    const iovec own{part.data, part.size};
    const iovec other{reinterpret_cast<void*>(host), part.size};
    const ssize_t done = to_host ? ::process_vm_writev(::getpid(), &own, 1, &other, 1, 0)
                                 : ::process_vm_readv(::getpid(), &own, 1, &other, 1, 0);
    if (done != static_cast<ssize_t>(part.size)) {
      return kIllegalAddress;
    }
    host += part.size;
  }
  return kSuccess;
}

}  // namespace

int visit(Address address, std::size_t size,
          const std::function<void(std::byte*, std::size_t)>& visitor) {
  std::vector<Part> parts;
  std::vector<std::shared_ptr<Backing>> held;
  const int result = parts_of(address, size, true, parts, held);
  for (std::size_t i = 0; result == kSuccess && i < parts.size(); ++i) {
    visitor(parts[i].data, parts[i].size);
  }
  return result;
}

int check_copy(Address to, Address from, std::size_t size) {
  for (const Address each : {to, from}) {
    std::vector<Part> parts;
    std::vector<std::shared_ptr<Backing>> held;
    if (in_arena(each)) {
      if (const int result = parts_of(each, size, false, parts, held); result != kSuccess) {
        return result;
      }
    }
  }
  return kSuccess;
}

int copy_now(Address to, Address from, std::size_t size) {
  if (size == 0) {
    return kSuccess;
  }
  std::vector<Part> into;
  std::vector<Part> out_of;
  std::vector<std::shared_ptr<Backing>> held;
  for (const auto& [address, parts] : {std::pair{to, &into}, std::pair{from, &out_of}}) {
    if (!in_arena(address)) {
      continue;
    }
    if (const int bad = fault_in(address, size); bad != kSuccess) {
      return bad;
    }
    const bool writes = parts == &into;
    if (const int result = parts_of(address, size, writes, *parts, held); result != kSuccess) {
      return kIllegalAddress;
    }
  }
  int result = kSuccess;
  if (into.empty() && out_of.empty()) {
    std::vector<std::byte> between(size);
    const std::vector<Part> room{{between.data(), size}};
    result = copy_host(from, room, false);
    result = result == kSuccess ? copy_host(to, room, true) : result;
  } else if (into.empty()) {
    result = copy_host(to, out_of, true);
  } else if (out_of.empty()) {
    result = copy_host(from, into, false);
  } else {
    std::size_t i = 0;
    std::size_t j = 0;
    while (i < into.size() && j < out_of.size()) {
      const std::size_t count = std::min(into[i].size, out_of[j].size);
      std::memmove(into[i].data, out_of[j].data, count);
      for (Part* const part : {&into[i], &out_of[j]}) {
        part->data += count;
        part->size -= count;
      }
      i += into[i].size == 0 ? 1 : 0;
      j += out_of[j].size == 0 ? 1 : 0;
    }
  }
  moved_bytes += result == kSuccess ? size : 0;
  return result;
}

std::uint64_t copied_bytes() { return moved_bytes; }

int& acting_device() {
  thread_local int device = -1;
  return device;
}

namespace {

int in_stream(void* handle, Address to, Address from, std::size_t size) {
  int result = kSuccess;
  const auto stream = stream_of(handle, result);
  if (stream == nullptr) {
    return result;
  }
  if (const int checked = check_copy(to, from, size); checked != kSuccess) {
    return checked;
  }
  Context& context = stream->context;
  stream->submit([&context, to, from, size] {
    return context.error == kSuccess ? copy_now(to, from, size) : context.error.load();
  });
  return kSuccess;
}

int at_once(Address to, Address from, std::size_t size) {
  const int submitted = in_stream(nullptr, to, from, size);
  if (submitted != kSuccess) {
    return submitted;
  }
  int result = kSuccess;
  const auto stream = stream_of(nullptr, result);
  stream->drain();
  return stream->context.error;
}

Address value(const void* pointer) { return reinterpret_cast<Address>(pointer); }

}  // namespace
}  // namespace fake

extern "C" {

int cuMemcpyAsync(std::uint64_t to, std::uint64_t from, std::size_t size, void* stream) {
  FAKE_CUDA_CALL(true);
  return fake::in_stream(stream, to, from, size);
}

int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t size) {
  FAKE_CUDA_CALL(true);
  return fake::at_once(to, fake::value(from), size);
}

int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t size) {
  FAKE_CUDA_CALL(true);
  return fake::at_once(fake::value(to), from, size);
}

// The signature of CUDA 12.8. Copies of a batch run in any order: the last first.
int cuMemcpyBatchAsync(std::uint64_t* to, std::uint64_t* from, std::size_t* sizes,
                       std::size_t count, const int* attributes, const std::size_t* first,
                       std::size_t attribute_count, std::size_t* failed, void* stream) {
  FAKE_CUDA_CALL(true);
  constexpr std::uintptr_t kDefaultStreams = 2;  // 0, 1 (legacy), 2 (of the thread)
  if (reinterpret_cast<std::uintptr_t>(stream) <= kDefaultStreams || count == 0 ||
      attributes == nullptr || attribute_count != 1 || first[0] != 0 || attributes[0] < 1 ||
      attributes[0] > 3) {
    return fake::kInvalidValue;
  }
  for (std::size_t i = count; i-- > 0;) {
    const int result = sizes[i] == 0 ? static_cast<int>(fake::kInvalidValue)
                                     : fake::in_stream(stream, to[i], from[i], sizes[i]);
    if (result != fake::kSuccess) {
      *failed = i;
      return result;
    }
  }
  return fake::kSuccess;
}

int cuMemsetD8_v2(std::uint64_t address, unsigned char byte, std::size_t size) {
  FAKE_CUDA_CALL(true);
  return fake::visit(address, size, [byte](std::byte* data, std::size_t count) {
    std::memset(data, byte, count);
  });
}

std::uint64_t fake_cuda_copied_bytes() { return fake::copied_bytes(); }
}
