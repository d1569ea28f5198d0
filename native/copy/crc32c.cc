#include "copy/crc32c.h"

#include <array>
#include <cstring>

#include "copy/crc32c_fold.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#define LDD_CRC_TARGET __attribute__((target("sse4.2,crc32")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define LDD_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace ldd {

namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78;  // reflected

constexpr std::array<std::uint32_t, 256> make_byte_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = (state >> 1) ^ ((state & 1) != 0 ? kPolynomial : 0);
    }
    table[byte] = state;
  }
  return table;
}

constexpr std::array<std::uint32_t, 256> kByteTable = make_byte_table();

std::uint32_t byte_step(std::uint32_t state, std::uint8_t byte) {
  return (state >> 8) ^ kByteTable[(state ^ byte) & 0xFF];
}

#ifdef LDD_CRC_TARGET

// Each instruction depends on the one before it, but the processor can have three in flight. So
// three adjacent stretches are computed at once and joined: the state after stretches A and B is
// the state of A advanced by as many zero bytes as B has, XOR the state of B started from 0.
// Advancing is linear, hence four tables, one per byte of the state.
class ZeroBytes {
 public:
  explicit ZeroBytes(std::size_t count) {
    std::array<std::uint32_t, 32> of_bit{};
    for (std::size_t bit = 0; bit < of_bit.size(); ++bit) {
      std::uint32_t state = std::uint32_t{1} << bit;
      for (std::size_t i = 0; i < count; ++i) {
        state = byte_step(state, 0);
      }
      of_bit[bit] = state;
    }
    for (std::size_t place = 0; place < tables_.size(); ++place) {
      for (std::size_t byte = 0; byte < 256; ++byte) {
        for (std::size_t bit = 0; bit < 8; ++bit) {
          tables_[place][byte] ^= (byte >> bit & 1) != 0 ? of_bit[8 * place + bit] : 0;
        }
      }
    }
  }

  [[nodiscard]] std::uint32_t after(std::uint32_t state) const {
    return tables_[0][state & 0xFF] ^ tables_[1][state >> 8 & 0xFF] ^
           tables_[2][state >> 16 & 0xFF] ^ tables_[3][state >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_{};
};

constexpr std::size_t kLongStretch = 4096;
constexpr std::size_t kShortStretch = 256;

LDD_CRC_TARGET inline std::uint64_t word_step(std::uint64_t state, const std::byte* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
#if defined(__x86_64__)
  return _mm_crc32_u64(state, word);
#else
  return __crc32cd(static_cast<std::uint32_t>(state), word);
#endif
}

LDD_CRC_TARGET inline std::uint64_t single_step(std::uint64_t state, std::byte byte) {
  const auto narrow = static_cast<std::uint32_t>(state);
#if defined(__x86_64__)
  return _mm_crc32_u8(narrow, static_cast<std::uint8_t>(byte));
#else
  return __crc32cb(narrow, static_cast<std::uint8_t>(byte));
#endif
}

// Consumes three stretches at a time while enough bytes remain; advances `at`.
LDD_CRC_TARGET std::uint64_t by_threes(std::uint64_t state, const std::byte*& at,
                                       const std::byte* end, std::size_t stretch,
                                       const ZeroBytes& zeroes) {
  while (static_cast<std::size_t>(end - at) >= 3 * stretch) {
    std::uint64_t second = 0;
    std::uint64_t third = 0;
    for (const std::byte* stop = at + stretch; at < stop; at += sizeof state) {
      state = word_step(state, at);
      second = word_step(second, at + stretch);
      third = word_step(third, at + 2 * stretch);
    }
    state = zeroes.after(static_cast<std::uint32_t>(state)) ^ second;
    state = zeroes.after(static_cast<std::uint32_t>(state)) ^ third;
    at += 2 * stretch;
  }
  return state;
}

LDD_CRC_TARGET std::uint32_t by_instruction(std::uint32_t before, std::span<const std::byte> data,
                                            bool folds) {
  static const ZeroBytes long_zeroes(kLongStretch);
  static const ZeroBytes short_zeroes(kShortStretch);
  const std::byte* at = data.data();
  const std::byte* const end = at + data.size();
  std::uint64_t state = before;
  if (folds && data.size() >= kLeastFold) {
    state = crc32c_fold(before, at, end);
  }
  state = by_threes(state, at, end, kLongStretch, long_zeroes);
  state = by_threes(state, at, end, kShortStretch, short_zeroes);
  for (; static_cast<std::size_t>(end - at) >= sizeof state; at += sizeof state) {
    state = word_step(state, at);
  }
  for (; at < end; ++at) {
    state = single_step(state, *at);
  }
  return static_cast<std::uint32_t>(state);
}

#endif

}  // namespace

bool crc32c_is_fast() {
#if defined(__x86_64__)
  static const bool has_it = __builtin_cpu_supports("sse4.2") != 0;
  return has_it;
#elif defined(LDD_CRC_TARGET)
  static const bool has_it = (::getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
  return has_it;
#else
  return false;
#endif
}

std::uint32_t crc32c_by_table(std::span<const std::byte> data, std::uint32_t before) {
  std::uint32_t state = ~before;
  for (const std::byte byte : data) {
    state = byte_step(state, static_cast<std::uint8_t>(byte));
  }
  return ~state;
}

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before) {
#ifdef LDD_CRC_TARGET
  if (crc32c_is_fast()) {
    return ~by_instruction(~before, data, crc32c_can_fold());
  }
#endif
  return crc32c_by_table(data, before);
}

std::uint32_t crc32c_by_instruction(std::span<const std::byte> data, std::uint32_t before) {
#ifdef LDD_CRC_TARGET
  if (crc32c_is_fast()) {
    return ~by_instruction(~before, data, false);
  }
#endif
  return crc32c_by_table(data, before);
}

}  // namespace ldd
