// SipHash-2-4 with 128 bits: the vectors published with it (key 00 01 .. 0f, message 00 01 02 ..),
// however the message is divided; and tags of frames, which no other frame has.
#include <vector>

#include "check.h"
#include "wire/siphash.h"
#include "wire/tags.h"

namespace {

namespace wire = ldd::wire;

struct Vector {
  std::size_t bytes;
  unsigned char tag[16];
};

constexpr Vector kPublished[] = {
    {0,
     {0xA3, 0x81, 0x7F, 0x04, 0xBA, 0x25, 0xA8, 0xE6, 0x6D, 0xF6, 0x72, 0x14, 0xC7, 0x55, 0x02,
      0x93}},
    {1,
     {0xDA, 0x87, 0xC1, 0xD8, 0x6B, 0x99, 0xAF, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9B, 0x22, 0xFC,
      0x45}},
    {2,
     {0x81, 0x77, 0x22, 0x8D, 0xA4, 0xA4, 0x5D, 0xC7, 0xFC, 0xA3, 0x8B, 0xDE, 0xF6, 0x0A, 0xFF,
      0xE4}},
    {3,
     {0x9C, 0x70, 0xB6, 0x0C, 0x52, 0x67, 0xA9, 0x4E, 0x5F, 0x33, 0xB6, 0xB0, 0x29, 0x85, 0xED,
      0x51}},
    {8,
     {0x3B, 0x62, 0xA9, 0xBA, 0x62, 0x58, 0xF5, 0x61, 0x0F, 0x83, 0xE2, 0x64, 0xF3, 0x14, 0x97,
      0xB4}},
    {15,
     {0x54, 0x93, 0xE9, 0x99, 0x33, 0xB0, 0xA8, 0x11, 0x7E, 0x08, 0xEC, 0x0F, 0x97, 0xCF, 0xC3,
      0xD9}},
    {63,
     {0x51, 0x50, 0xD1, 0x77, 0x2F, 0x50, 0x83, 0x4A, 0x50, 0x3E, 0x06, 0x9A, 0x97, 0x3F, 0xBD,
      0x7C}},
};

wire::SipKey counting_key() {
  wire::SipKey key{};
  for (std::size_t i = 0; i < key.size(); ++i) {
    key[i] = static_cast<std::byte>(i);
  }
  return key;
}

std::vector<std::byte> counting(std::size_t bytes) {
  std::vector<std::byte> message(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    message[i] = static_cast<std::byte>(i);
  }
  return message;
}

void check_published_vectors() {
  for (const Vector& vector : kPublished) {
    const auto message = counting(vector.bytes);
    for (std::size_t cut = 0; cut <= message.size(); ++cut) {
      wire::SipHash hash(counting_key());
      hash.add(std::span(message).first(cut));
      hash.add(std::span(message).subspan(cut));
      const wire::SipTag tag = hash.end();
      CHECK(std::equal(tag.begin(), tag.end(), std::begin(vector.tag),
                       [](std::byte a, unsigned char b) { return a == std::byte{b}; }));
    }
  }
}

void check_tags_are_of_one_frame_in_one_place() {
  const auto columns = counting(32);
  wire::Tags sent(counting_key());
  auto frame = wire::encode_request(wire::Kind::kRead, 0, 1, {});
  sent.seal(frame, columns);
  CHECK(wire::Tags(counting_key()).check(frame, columns));
  for (std::size_t i = 0; i < frame.size(); ++i) {
    auto changed = frame;
    changed[i] ^= std::byte{1};
    CHECK(!wire::Tags(counting_key()).check(changed, columns));
  }
  for (std::size_t i = 0; i < columns.size(); ++i) {
    auto changed = columns;
    changed[i] ^= std::byte{0x80};
    CHECK(!wire::Tags(counting_key()).check(frame, changed));
  }
  CHECK(!wire::Tags().check(frame, columns));  // another key
  wire::Tags received(counting_key());
  CHECK(received.check(frame, columns) && !received.check(frame, columns));  // repeated
  auto second = wire::encode_header({wire::Kind::kGo, 0, 0, 1});
  sent.seal(second);
  CHECK(!wire::Tags(counting_key()).check(second));  // the first is missing
}

void check_a_frame_that_is_taken_back_does_not_count() {
  wire::Tags sent(counting_key());
  auto dropped = wire::encode_header({wire::Kind::kChunk, 0, 9, 1});
  sent.seal(dropped);
  sent.take_back();
  auto frame = wire::encode_outcome(1, {});
  sent.seal(frame);
  CHECK(wire::Tags(counting_key()).check(frame));
}

}  // namespace

int main() {
  check_published_vectors();
  check_tags_are_of_one_frame_in_one_place();
  check_a_frame_that_is_taken_back_does_not_count();
  return 0;
}
