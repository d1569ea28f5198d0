#include "copy/summed_copy.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "copy/crc32c.h"
#include "copy/crc32c_fold.h"

namespace ldd {

namespace {

constexpr std::size_t kHotBytes = 16 * 1024;  // both sides fit into the first-level cache
constexpr std::size_t kLine = 64;
constexpr std::size_t kLeastStreamed = 2048;

}  // namespace

std::uint32_t copy_and_checksum(std::byte* to, const std::byte* from, std::size_t size,
                                std::uint32_t before) {
  std::uint32_t sum = before;
  for (std::size_t offset = 0; offset < size; offset += kHotBytes) {
    const std::size_t bytes = std::min(kHotBytes, size - offset);
    std::memcpy(to + offset, from + offset, bytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // reads back the stored bytes
    sum = crc32c({to + offset, bytes}, sum);
  }
  return sum;
}

std::uint32_t stream_and_checksum(std::byte* to, const std::byte* from, std::size_t size,
                                  std::uint32_t before) {
  if (!crc32c_can_fold() || size < kLeastStreamed) {
    return copy_and_checksum(to, from, size, before);
  }
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  const std::uint32_t sum = copy_and_checksum(to, from, head, before);
  const std::byte* at = from + head;
  const std::uint32_t state = crc32c_fold_and_stream(~sum, at, from + size, to + head);
  const auto done = static_cast<std::size_t>(at - from);
  return copy_and_checksum(to + done, at, size - done, ~state);
}

}  // namespace ldd
