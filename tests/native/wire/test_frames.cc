// Frames: what is encoded decodes to the same; any other bytes are refused or give a valid value.
#include <algorithm>
#include <random>

#include "check.h"
#include "wire/frames.h"

namespace {

namespace wire = ldd::wire;
using wire::Kind;

constexpr Kind kRequests[] = {
    Kind::kRead,    Kind::kWrite, Kind::kPush,     Kind::kConsume, Kind::kDirectoryVersion,
    Kind::kReadLog, Kind::kPing,  Kind::kChecksum, Kind::kProbe,   Kind::kGather};

std::span<const std::byte, wire::kHeaderBytes> header_of(std::span<const std::byte> frame) {
  return frame.first<wire::kHeaderBytes>();
}

// The layout is fixed: these very bytes are what other versions and machines send.
void check_golden_header() {
  const auto bytes = wire::encode_header({Kind::kChunk, 0, 0x00012345, 0xA1B2C3D4});
  // The tag is made elsewhere.
  const unsigned char golden[] = {0x4C, 0x44, 0x4C, 0x4E, 2,    16, 0, 0, 0x45, 0x23, 0x01,
                                  0x00, 0xD4, 0xC3, 0xB2, 0xA1, 0,  0, 0, 0,    0,    0,
                                  0,    0,    0,    0,    0,    0,  0, 0, 0,    0};
  CHECK(std::equal(bytes.begin(), bytes.end(), golden,
                   [](std::byte a, unsigned char b) { return a == std::byte{b}; }));
}

void check_requests_survive() {
  std::mt19937_64 random(1);
  for (const Kind kind : kRequests) {
    wire::Request request{random() >> 2, random() >> 2, random(), random(), random(),
                          random(),      random(),      random(), 1000,     0};
    request.count = wire::words_per_descriptor(kind) == 0 ? 0 : wire::kMaxDescriptors;
    const auto frame = wire::encode_request(kind, wire::kTargetsClock, 77, request);
    const auto header = wire::decode_header(header_of(frame));
    CHECK(header && header->kind == kind && header->sequence == 77);
    CHECK(header->body_bytes ==
          wire::kRequestBytes + request.count * wire::words_per_descriptor(kind) * 8);
    const auto back = wire::decode_request(
        *header, std::span<const std::byte>(frame).last<wire::kRequestBytes>());
    CHECK(back && back->deadline_ns == request.deadline_ns && back->version == request.version);
    CHECK(back->remaining_ns == request.remaining_ns && back->cache_index == request.cache_index);
    CHECK(back->cache_value == request.cache_value && back->key_index == request.key_index);
    CHECK(back->key_value == request.key_value && back->offset == request.offset);
    CHECK(back->size == request.size && back->count == request.count);
  }
}

void check_caps() {
  wire::Request request;
  request.count = wire::kMaxDescriptors + 1;
  const auto frame = wire::encode_request(Kind::kRead, 0, 1, request);
  const auto header = wire::decode_header(header_of(frame));
  CHECK(!header || !wire::decode_request(
                       *header, std::span<const std::byte>(frame).last<wire::kRequestBytes>()));
  CHECK(!wire::decode_header(
      header_of(wire::encode_header({Kind::kChunk, 0, wire::kMaxChunkBytes + 1, 1}))));
  CHECK(!wire::decode_header(header_of(wire::encode_header({Kind::kChunk, 0, 0, 1}))));
  CHECK(!wire::decode_header(header_of(wire::encode_header({Kind::kGo, 0, 1, 1}))));
  CHECK(!wire::decode_header(header_of(wire::encode_header({Kind::kOutcome, 0, 31, 1}))));
  CHECK(!wire::decode_header(
      header_of(wire::encode_header({Kind::kRead, wire::kInlinePayload, 80, 1}))));
  CHECK(wire::decode_header(
      header_of(wire::encode_header({Kind::kWrite, wire::kInlinePayload, 80, 1}))));
}

void check_outcomes_survive() {
  const wire::Reply reply{{ldd::Code::kRemoteFault, 14, 123, 456}, 789};
  const auto frame = wire::encode_outcome(5, reply);
  const auto bytes = std::span<const std::byte>(frame).last<wire::kOutcomeBytes>();
  const auto back = wire::decode_outcome(bytes);
  CHECK(back && back->outcome.code == reply.outcome.code && back->outcome.sys_errno == 14);
  CHECK(back->outcome.index == 123 && back->outcome.moved_bytes == 456 && back->value == 789);
  auto unknown = frame;
  unknown[wire::kHeadBytes] = std::byte{13};
  CHECK(!wire::decode_outcome(std::span<const std::byte>(unknown).last<wire::kOutcomeBytes>()));
}

// Whatever decodes is within every cap, however the bytes came about.
void check_mutations() {
  std::mt19937_64 random(2);
  for (int round = 0; round < 200'000; ++round) {
    wire::Request request;
    request.count = static_cast<std::uint32_t>(random() % 4);
    auto frame = wire::encode_request(kRequests[random() % std::size(kRequests)],
                                      static_cast<std::uint16_t>(random() % 4), 1, request);
    for (std::uint64_t changes = random() % 4; changes > 0; --changes) {
      frame[random() % frame.size()] = static_cast<std::byte>(random());
    }
    const auto header = wire::decode_header(header_of(frame));
    if (!header || !wire::is_request(header->kind)) {
      continue;
    }
    const auto back = wire::decode_request(
        *header, std::span<const std::byte>(frame).last<wire::kRequestBytes>());
    if (back) {
      CHECK(back->count <= wire::kMaxDescriptors && back->size <= wire::kMaxLogBytes);
      CHECK(back->remaining_ns <= wire::kMaxRemainingNs);
      CHECK(header->body_bytes ==
            wire::kRequestBytes +
                std::uint64_t{back->count} * 8 * wire::words_per_descriptor(header->kind));
    }
  }
}

}  // namespace

int main() {
  check_golden_header();
  check_requests_survive();
  check_caps();
  check_outcomes_survive();
  check_mutations();
  return 0;
}
