#include "wire/tags.h"

#include <algorithm>

namespace ldd::wire {

SipTag Tags::tag_of(std::span<const std::byte> frame, std::span<const std::byte> more) const {
  std::array<std::byte, sizeof count_> number{};
  for (std::size_t i = 0; i < number.size(); ++i) {
    number[i] = static_cast<std::byte>(count_ >> (8 * i));
  }
  SipHash hash(key_);
  hash.add(number);
  hash.add(frame.first(kHeaderBytes));
  hash.add(frame.subspan(kHeadBytes));
  hash.add(more);
  return hash.end();
}

void Tags::seal(std::span<std::byte> frame, std::span<const std::byte> more) {
  const SipTag tag = tag_of(frame, more);
  std::copy(tag.begin(), tag.end(), frame.subspan(kHeaderBytes).begin());
  ++count_;
}

bool Tags::check(std::span<const std::byte> frame, std::span<const std::byte> more) {
  const SipTag tag = tag_of(frame, more);
  const auto given = frame.subspan(kHeaderBytes, kTagBytes);
  std::byte differing{0};  // compares all bytes, so that the time reveals nothing
  for (std::size_t i = 0; i < tag.size(); ++i) {
    differing |= tag[i] ^ given[i];
  }
  ++count_;
  return differing == std::byte{0};
}

}  // namespace ldd::wire
