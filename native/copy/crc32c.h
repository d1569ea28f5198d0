// CRC-32C (Castagnoli), by the processor's instruction where it has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ldd {

// The checksum of `data` that follows what `before` is the checksum of.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before = 0);

// The same by table, on any processor.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> data,
                                            std::uint32_t before = 0);

// Whether crc32c uses an instruction.
[[nodiscard]] bool crc32c_is_fast();

}  // namespace ldd
