#include "wire/siphash.h"

#include <bit>
#include <cstring>

namespace ldd::wire {

namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

std::uint64_t load(const std::byte* at) {
  std::uint64_t word = 0;
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(&word, at, kWord);
  } else {
    for (std::size_t i = 0; i < kWord; ++i) {
      word |= std::to_integer<std::uint64_t>(at[i]) << (8 * i);
    }
  }
  return word;
}

void store(std::byte* at, std::uint64_t word) {
  for (std::size_t i = 0; i < kWord; ++i) {
    at[i] = static_cast<std::byte>(word >> (8 * i));
  }
}

}  // namespace

SipHash::SipHash(const SipKey& key)
    : v0_(load(key.data()) ^ 0x736f6d6570736575),
      v1_(load(key.data() + kWord) ^ 0x646f72616e646f6d ^ 0xee),
      v2_(load(key.data()) ^ 0x6c7967656e657261),
      v3_(load(key.data() + kWord) ^ 0x7465646279746573) {}

void SipHash::round() {
  v0_ += v1_;
  v1_ = std::rotl(v1_, 13) ^ v0_;
  v0_ = std::rotl(v0_, 32);
  v2_ += v3_;
  v3_ = std::rotl(v3_, 16) ^ v2_;
  v0_ += v3_;
  v3_ = std::rotl(v3_, 21) ^ v0_;
  v2_ += v1_;
  v1_ = std::rotl(v1_, 17) ^ v2_;
  v2_ = std::rotl(v2_, 32);
}

void SipHash::add_word(std::uint64_t word) {
  v3_ ^= word;
  round();
  round();
  v0_ ^= word;
}

void SipHash::add(std::span<const std::byte> part) {
  const std::byte* at = part.data();
  std::size_t left = part.size();
  for (; left > 0 && total_ % kWord != 0; --left) {
    pending_ |= std::to_integer<std::uint64_t>(*at++) << (8 * (total_++ % kWord));
    if (total_ % kWord == 0) {
      add_word(pending_);
      pending_ = 0;
    }
  }
  for (; left >= kWord; left -= kWord, at += kWord, total_ += kWord) {
    add_word(load(at));
  }
  for (; left > 0; --left) {
    pending_ |= std::to_integer<std::uint64_t>(*at++) << (8 * (total_++ % kWord));
  }
}

SipTag SipHash::end() {
  add_word(pending_ | static_cast<std::uint64_t>(total_) << 56);
  SipTag tag{};
  v2_ ^= 0xee;
  for (int i = 0; i < 4; ++i) {
    round();
  }
  store(tag.data(), v0_ ^ v1_ ^ v2_ ^ v3_);
  v1_ ^= 0xdd;
  for (int i = 0; i < 4; ++i) {
    round();
  }
  store(tag.data() + kWord, v0_ ^ v1_ ^ v2_ ^ v3_);
  return tag;
}

}  // namespace ldd::wire
