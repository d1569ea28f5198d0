// A copy that computes the checksum of the copied bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ldd {

// Copies between ranges that do not overlap. Returns the CRC-32C `before`, extended by the bytes of
// the destination, which are read back while they are in the first-level cache.
[[nodiscard]] std::uint32_t copy_and_checksum(std::byte* to, const std::byte* from,
                                              std::size_t size, std::uint32_t before);

// The same with stores that bypass the caches, where the processor supports it; then the checksum
// is of the bytes in its registers. finish_streaming() must follow the last call.
[[nodiscard]] std::uint32_t stream_and_checksum(std::byte* to, const std::byte* from,
                                                std::size_t size, std::uint32_t before);

}  // namespace ldd
