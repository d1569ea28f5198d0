// A copy that tells the checksum of what it copies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ldd {

// Copies between ranges that do not overlap, and returns the CRC-32C that follows `before`: of what
// the destination holds, read back while the first-level cache has it.
[[nodiscard]] std::uint32_t copy_and_checksum(std::byte* to, const std::byte* from,
                                              std::size_t size, std::uint32_t before);

// The same with stores that go around the caches, where the processor can: then it is the checksum
// of what passes through its registers. finish_streaming() comes after the last one.
[[nodiscard]] std::uint32_t stream_and_checksum(std::byte* to, const std::byte* from,
                                                std::size_t size, std::uint32_t before);

}  // namespace ldd
