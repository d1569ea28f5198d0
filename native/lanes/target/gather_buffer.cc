#include "lanes/target/gather_buffer.h"

#include <sys/mman.h>

#include <atomic>

#include "wire/frames.h"

namespace ldd {

namespace {

constexpr std::size_t kMostBuffers = 256;  // 64 MiB

std::atomic<std::size_t> buffers{0};

}  // namespace

std::span<std::byte> GatherBuffer::room() {
  if (memory_.valid()) {
    return memory_.bytes();
  }
  if (buffers.fetch_add(1) >= kMostBuffers) {
    buffers.fetch_sub(1);
    return {};
  }
  void* const address = ::mmap(nullptr, wire::kMaxGatherBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    buffers.fetch_sub(1);
    return {};
  }
  memory_ = MappedRegion(address, wire::kMaxGatherBytes);
  return memory_.bytes();
}

void GatherBuffer::reset() {
  if (memory_.valid()) {
    memory_.reset();
    buffers.fetch_sub(1);
  }
}

}  // namespace ldd
