// CRC-32C by carry-less multiplication of 512-bit vectors, 256 bytes at a time: several times as
// fast as the processor's CRC-32C instruction.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ldd {

inline constexpr std::size_t kLeastFold = 256;

// Whether this processor has the instructions.
bool crc32c_can_fold();

// Extends `state` by the bytes from `at` on; at least kLeastFold bytes must precede `end`. Leaves
// less than 64 bytes before `end`, and advances `at`.
std::uint32_t crc32c_fold(std::uint32_t state, const std::byte*& at, const std::byte* end);

// The same, and stores those bytes to `to`, which must be aligned to 64 bytes, bypassing the
// caches. finish_streaming() must follow the last call.
std::uint32_t crc32c_fold_and_stream(std::uint32_t state, const std::byte*& at,
                                     const std::byte* end, std::byte* to);

}  // namespace ldd
