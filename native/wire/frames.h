// Frames of a data lane: pure encoding and decoding, no I/O, no allocation.
// docs/design/wire-format.md is normative. Every integer is little-endian. Arrays of descriptors
// travel as whole columns of 64-bit words, so that a receiver reads them directly into the arrays
// it uses.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/outcome.h"

namespace ldd::wire {

inline constexpr std::uint32_t kMagic = 0x4E4C444C;  // "LDLN"
inline constexpr std::uint8_t kVersion = 2;

inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kTagBytes = 16;
inline constexpr std::size_t kHeadBytes = kHeaderBytes + kTagBytes;
inline constexpr std::size_t kRequestBytes = 80;
inline constexpr std::size_t kOutcomeBytes = 32;
inline constexpr std::size_t kRequestFrameBytes = kHeadBytes + kRequestBytes;
inline constexpr std::size_t kOutcomeFrameBytes = kHeadBytes + kOutcomeBytes;

inline constexpr std::uint32_t kMaxDescriptors = 64 * 1024;   // of one request
inline constexpr std::uint32_t kMaxChunkBytes = 1024 * 1024;  // payload of one chunk
inline constexpr std::uint64_t kMaxInlineBytes = 64 * 1024;   // a write that needs no GO
inline constexpr std::uint64_t kMaxLogBytes = 256 * 1024;     // of one READ_LOG
inline constexpr std::uint64_t kMaxGatherBytes = 256 * 1024;  // of one GATHER
inline constexpr std::uint64_t kMaxRemainingNs = std::uint64_t{1} << 62;

enum class Kind : std::uint8_t {
  kRead = 1,
  kWrite = 2,
  kPush = 3,
  kConsume = 4,
  kDirectoryVersion = 5,
  kReadLog = 6,
  kPing = 7,
  kChecksum = 8,
  kProbe = 9,
  kGather = 10,
  kChunk = 16,
  kOutcome = 17,
  kGo = 18,
};

inline constexpr std::uint16_t kTargetsClock = 1;   // deadline_ns is a time of the target's clock
inline constexpr std::uint16_t kInlinePayload = 2;  // WRITE: the payload follows at once

struct Header {
  Kind kind = Kind::kPing;
  std::uint16_t flags = 0;
  std::uint32_t body_bytes = 0;
  std::uint32_t sequence = 0;  // of the request; its replies repeat it
};

struct Request {
  std::uint64_t deadline_ns = 0;   // CLOCK_MONOTONIC of the target, with kTargetsClock
  std::uint64_t remaining_ns = 0;  // until then, when the request was sent
  std::uint64_t version = 0;       // directory version that must be current; 0 = any
  std::uint64_t cache_index = 0;
  std::uint64_t cache_value = 0;
  std::uint64_t key_index = 0;  // READ, CONSUME: a key of the target; PUSH: the initiator's entry
  std::uint64_t key_value = 0;
  std::uint64_t offset = 0;  // READ_LOG
  std::uint64_t size = 0;    // READ_LOG
  std::uint32_t count = 0;   // descriptors
};

// An outcome and one more word. In replies of a target that is the version, for kDirectoryVersion,
// or else the target's CLOCK_MONOTONIC.
struct Reply {
  Outcome outcome;
  std::uint64_t value = 0;
};

// Header and tag. Tags (wire/tags.h) makes and checks the tag.
using Head = std::array<std::byte, kHeadBytes>;
using OutcomeFrame = std::array<std::byte, kOutcomeFrameBytes>;
using RequestFrame = std::array<std::byte, kRequestFrameBytes>;

[[nodiscard]] bool is_request(Kind kind);
// Whether the chunks of a reply are an answer, which the tag of the outcome covers too. The bytes
// of other chunks are payload, which no tag covers.
[[nodiscard]] bool has_answer(Kind kind);
// The number of 64-bit words per descriptor of a request of this kind; 0 = no descriptors.
[[nodiscard]] std::size_t words_per_descriptor(Kind kind);

// Encoded frames have room for their tag, filled with zeroes.
[[nodiscard]] Head encode_header(const Header& header);
// The frame without its descriptor columns, which the sender must append; body_bytes includes them.
[[nodiscard]] RequestFrame encode_request(Kind kind, std::uint16_t flags, std::uint32_t sequence,
                                          const Request& request);
[[nodiscard]] OutcomeFrame encode_outcome(std::uint32_t sequence, const Reply& reply);

// Null if no party may send that header. Checks magic, version, kind, flags and the limits of the
// body.
[[nodiscard]] std::optional<Header> decode_header(std::span<const std::byte, kHeaderBytes> bytes);
// Null if the request does not match its header or exceeds a limit.
[[nodiscard]] std::optional<Request> decode_request(
    const Header& header, std::span<const std::byte, kRequestBytes> bytes);
// Null if the code is unknown.
[[nodiscard]] std::optional<Reply> decode_outcome(std::span<const std::byte, kOutcomeBytes> bytes);

// Converts columns of descriptors or checksums between wire and host byte order; does nothing on
// little-endian machines.
void convert_words(std::span<std::uint64_t> words);
void convert_words(std::span<std::uint32_t> words);

}  // namespace ldd::wire
