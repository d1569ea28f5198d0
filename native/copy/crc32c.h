// CRC-32C (Castagnoli), computed in the fastest way that the processor offers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ldd {

// The checksum of the bytes that `before` covers, followed by `data`.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before = 0);

// The same with the processor's CRC-32C instruction or, without one, by table.
[[nodiscard]] std::uint32_t crc32c_by_instruction(std::span<const std::byte> data,
                                                  std::uint32_t before = 0);

// The same by table, on any processor.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> data,
                                            std::uint32_t before = 0);

// Whether the processor has that instruction.
[[nodiscard]] bool crc32c_is_fast();

}  // namespace ldd
