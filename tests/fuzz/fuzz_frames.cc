// The decoder of frames, on a sequence of them, without tags. What decodes is within every cap and
// encodes to the very bytes that it came from; nothing else decodes.
#include <algorithm>

#include "arena.h"
#include "wire/frames.h"

namespace {

namespace wire = ldd::wire;

// Whether the input begins with this frame, which has room for a tag where the input has none.
bool same_frame(std::span<const std::byte> encoded, std::span<const std::byte> input) {
  const auto body = encoded.subspan(wire::kHeadBytes);
  return std::equal(encoded.begin(), encoded.begin() + wire::kHeaderBytes, input.begin()) &&
         std::equal(body.begin(), body.end(), input.begin() + wire::kHeaderBytes);
}

void check_request(const wire::Header& header, std::span<const std::byte> frame) {
  const auto request =
      wire::decode_request(header, frame.subspan<wire::kHeaderBytes, wire::kRequestBytes>());
  if (!request) {
    return;
  }
  CHECK(wire::is_request(header.kind));
  CHECK(request->count <= wire::kMaxDescriptors && request->size <= wire::kMaxLogBytes);
  CHECK(request->deadline_ns <= wire::kMaxRemainingNs);
  CHECK(request->remaining_ns <= wire::kMaxRemainingNs);
  const std::uint64_t words = wire::words_per_descriptor(header.kind) * request->count;
  CHECK(header.body_bytes == wire::kRequestBytes + 8 * words);
  CHECK(same_frame(wire::encode_request(header.kind, header.flags, header.sequence, *request),
                   frame));
}

void check_outcome(const wire::Header& header, std::span<const std::byte> frame) {
  const auto reply = wire::decode_outcome(frame.subspan<wire::kHeaderBytes, wire::kOutcomeBytes>());
  if (reply) {
    CHECK(reply->outcome.code <= ldd::Code::kCancelled);
    CHECK(header.flags == 0);
    CHECK(same_frame(wire::encode_outcome(header.sequence, *reply), frame));
  }
}

// Checks the first frame; returns how many bytes it takes, 0 when there is none.
std::size_t check_frame(std::span<const std::byte> data) {
  if (data.size() < wire::kHeaderBytes) {
    return 0;
  }
  const auto header = wire::decode_header(data.first<wire::kHeaderBytes>());
  if (!header) {
    return 0;
  }
  CHECK(same_frame(wire::encode_header(*header), data));
  const bool outcome = header->kind == wire::Kind::kOutcome;
  if (wire::is_request(header->kind) && data.size() >= wire::kHeaderBytes + wire::kRequestBytes) {
    check_request(*header, data);
  } else if (outcome && data.size() >= wire::kHeaderBytes + wire::kOutcomeBytes) {
    check_outcome(*header, data);
  }
  return std::min<std::size_t>(data.size(), wire::kHeaderBytes + header->body_bytes);
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::span<const std::byte> rest(reinterpret_cast<const std::byte*>(data), size);
  while (const std::size_t taken = check_frame(rest)) {
    rest = rest.subspan(taken);
  }
  return 0;
}
