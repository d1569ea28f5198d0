// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast short-input PRF"):
// a keyed function of short messages, which cannot be computed or predicted without the key.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ldd::wire {

inline constexpr std::size_t kSipKeyBytes = 16;
inline constexpr std::size_t kSipTagBytes = 16;

using SipKey = std::array<std::byte, kSipKeyBytes>;
using SipTag = std::array<std::byte, kSipTagBytes>;

// Hashes one message, in parts.
class SipHash {
 public:
  explicit SipHash(const SipKey& key);
  void add(std::span<const std::byte> part);
  // Ends the message; once.
  [[nodiscard]] SipTag end();

 private:
  void add_word(std::uint64_t word);
  void round();

  std::uint64_t v0_;
  std::uint64_t v1_;
  std::uint64_t v2_;
  std::uint64_t v3_;
  std::uint64_t pending_ = 0;  // bytes of an incomplete word
  std::size_t total_ = 0;
};

}  // namespace ldd::wire
