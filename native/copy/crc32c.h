// CRC-32C (Castagnoli), in the fastest way that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ldd {

// The checksum of `data` that follows what `before` is the checksum of.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before = 0);

// The same by the processor's instruction for it, or else by table.
[[nodiscard]] std::uint32_t crc32c_by_instruction(std::span<const std::byte> data,
                                                  std::uint32_t before = 0);

// The same by table, on any processor.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> data,
                                            std::uint32_t before = 0);

// Whether there is such an instruction.
[[nodiscard]] bool crc32c_is_fast();

}  // namespace ldd
