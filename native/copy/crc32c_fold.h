// CRC-32C by carry-less multiplication, 256 bytes at a time: several times as fast as the
// processor's own instruction for it, where it has vectors of 512 bits for that.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ldd {

inline constexpr std::size_t kLeastFold = 256;

// Whether this processor can.
bool crc32c_can_fold();

// Makes `state` include what begins at `at`, of which at least kLeastFold bytes have to be there;
// leaves less than 64 bytes before `end`, and moves `at` there.
std::uint32_t crc32c_fold(std::uint32_t state, const std::byte*& at, const std::byte* end);

// The same, and stores what it includes to `to`, whose address divides by 64, around the caches:
// finish_streaming() comes after the last one.
std::uint32_t crc32c_fold_and_stream(std::uint32_t state, const std::byte*& at,
                                     const std::byte* end, std::byte* to);

}  // namespace ldd
