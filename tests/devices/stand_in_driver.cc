// Stands in for libcuda.so.1 where there is no GPU. Its "device memory" is memory of the process
// that it alone knows to be a device's: enough to see that every byte of it is copied by the
// driver, in the right context and stream, and what the library takes for whose memory. The names
// and numbers are those of the CUDA driver API.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kInvalidContext = 201;
constexpr int kDevices = 2;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kArena = std::size_t{1} << 30;

std::mutex mutex;
std::map<std::uint64_t, std::pair<std::size_t, int>> memory;  // address: bytes, device
int contexts[kDevices];
thread_local void* current = nullptr;
std::uint64_t copied_bytes = 0;
bool failing = false;

// -1 for what is not a device's, and for a range that goes on beyond an allocation.
int device_of(std::uint64_t address, std::size_t size = 1) {
  const std::lock_guard lock(mutex);
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) {
    return -1;
  }
  const auto& [begin, known] = *--after;
  return address - begin <= known.first - size ? known.second : -1;
}

bool on_host(std::uint64_t address) { return device_of(address) < 0; }

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDeviceGetCount(int* count) {
  *count = kDevices;
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &contexts[device];
  return kSuccess;
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  current = context;
  return kSuccess;
}
int cuStreamCreate(void** stream, unsigned) {
  *stream = current;  // so that a copy can see whether stream and context belong together
  return current == nullptr ? kInvalidContext : kSuccess;
}
int cuStreamSynchronize(void*) { return kSuccess; }

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
  // One allocation begins where the one before ends, as a GPU's often do.
  static auto next = reinterpret_cast<std::uint64_t>(
      ::mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const std::lock_guard lock(mutex);
  *address = next;
  next += (size + kPage - 1) / kPage * kPage;
  memory[*address] = {size, static_cast<int>(static_cast<int*>(current) - contexts)};
  return kSuccess;
}
int cuMemFree_v2(std::uint64_t address) {
  const std::lock_guard lock(mutex);
  memory.erase(address);
  return kSuccess;
}
int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t size) {
  std::memcpy(pointer(to), from, size);
  return kSuccess;
}
int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t size) {
  std::memcpy(to, pointer(from), size);
  return kSuccess;
}
int cuMemcpyAsync(std::uint64_t to, std::uint64_t from, std::size_t size, void* stream) {
  const int device = on_host(to) ? device_of(from, size) : device_of(to, size);
  if (failing || device < 0 || (!on_host(from) && device_of(from, size) < 0)) {
    return kInvalidValue;
  }
  if (current != &contexts[device] || stream != current) {
    return kInvalidContext;
  }
  std::memcpy(pointer(to), pointer(from), size);
  const std::lock_guard lock(mutex);
  copied_bytes += size;
  return kSuccess;
}
int cuPointerGetAttribute(int* value, int which, std::uint64_t address) {
  constexpr int kMemoryType = 2;
  constexpr int kIsManaged = 8;
  constexpr int kOrdinal = 9;
  constexpr int kOnDevice = 2;
  const int device = device_of(address);
  if (device < 0) {
    return kInvalidValue;
  }
  *value = which == kMemoryType ? kOnDevice : which == kOrdinal ? device : 0;
  return which == kMemoryType || which == kOrdinal || which == kIsManaged ? kSuccess
                                                                          : kInvalidValue;
}

// For tests.
std::uint64_t stand_in_copied_bytes() { return copied_bytes; }
void stand_in_fail(int fails) { failing = fails != 0; }
}
