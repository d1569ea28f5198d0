// The initiator's side of one request, which is given the input as what the target sends. Whatever
// that is: only the caller's memory is written; a read that ends well has put exactly the bytes of
// the chunks in place; the end of the stream ends it.
//
// The first byte of the input chooses the request, the second how many bytes arrive at a time; 255
// for all, and for frames that get no tags.
#include "arena.h"
#include "base/clock.h"
#include "lanes/initiator/exchange.h"
#include "wire/frames.h"

namespace {

namespace wire = ldd::wire;
using ldd::Flow;
using ldd_fuzz::Arena;
using ldd_fuzz::kBase;
using ldd_fuzz::kPage;

// Local memory: two pieces with a hole between them, and one whose second half is not there.
constexpr std::uint64_t kEnd = kBase + 3 * kPage;
constexpr std::array<std::uint64_t, 3> kAddresses{kBase + 1024, kBase + kPage, kEnd - 512};
constexpr std::array<std::uint64_t, 3> kLengths{1024, 512, 1024};
constexpr int kMostTurns = 100'000;

class NoGuard : public ldd::BatchGuard {
 public:
  ldd::Outcome take(std::vector<ldd::Use>& /*uses*/) override { return {}; }
};

struct Choice {
  wire::Kind kind;
  std::size_t pieces;  // of own memory
};
constexpr std::array<Choice, 8> kChoices{{{wire::Kind::kRead, 2},
                                          {wire::Kind::kRead, 3},
                                          {wire::Kind::kWrite, 2},
                                          {wire::Kind::kWrite, 3},
                                          {wire::Kind::kPush, 2},
                                          {wire::Kind::kDirectoryVersion, 0},
                                          {wire::Kind::kReadLog, 1},
                                          {wire::Kind::kConsume, 0}}};

constexpr Choice kChecksum{wire::Kind::kChecksum, 1};
constexpr Choice kProbe{wire::Kind::kProbe, 0};
constexpr Choice kGather{wire::Kind::kGather, 1};

const Choice& choice_of(std::uint8_t byte) {
  if (byte == 0xEF) {
    return kGather;
  }
  if (byte >= 0xF0) {
    return byte >= 0xF8 ? kChecksum : kProbe;
  }
  return kChoices[byte % kChoices.size()];
}

std::uint64_t sum_of(std::size_t pieces) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < pieces; ++i) {
    sum += kLengths[i];
  }
  return sum;
}

ldd::LaneRequest request_for(const Choice& choice) {
  ldd::LaneRequest request;
  request.kind = choice.kind;
  request.deadline_ns = ldd::now_ns() + 60'000'000'000;
  if (wire::words_per_descriptor(choice.kind) != 0) {
    request.fixed.count = static_cast<std::uint32_t>(choice.pieces);
    request.words.assign(choice.pieces * wire::words_per_descriptor(choice.kind), 64);
  }
  request.fixed.size = choice.kind == wire::Kind::kReadLog ? kLengths[0] : 0;
  return request;
}

// The payload of the chunks at the beginning of what the target says.
std::vector<std::byte> payload_of(std::span<const std::byte> said) {
  std::vector<std::byte> payload;
  while (said.size() >= wire::kHeaderBytes) {
    const auto header = wire::decode_header(said.first<wire::kHeaderBytes>());
    if (!header || header->kind != wire::Kind::kChunk) {
      break;
    }
    const auto body = said.subspan(wire::kHeaderBytes);
    const std::size_t size = std::min<std::size_t>(body.size(), header->body_bytes);
    payload.insert(payload.end(), body.begin(), body.begin() + static_cast<std::ptrdiff_t>(size));
    said = body.subspan(size);
  }
  return payload;
}

void check_read(std::size_t pieces, std::span<const std::byte> payload) {
  CHECK(payload.size() >= sum_of(pieces));
  for (std::size_t i = 0; i < pieces; ++i) {
    const auto* const local = reinterpret_cast<const std::byte*>(kAddresses[i]);
    CHECK(std::equal(local, local + kLengths[i], payload.begin()));
    payload = payload.subspan(kLengths[i]);
  }
}

void check_memory(const Choice& choice) {
  const Arena& arena = Arena::get();
  CHECK(arena.untouched(kBase, kAddresses[0]));
  CHECK(arena.untouched(kAddresses[0] + kLengths[0], kAddresses[1]));
  CHECK(arena.untouched(kAddresses[1] + kLengths[1], kAddresses[2]));
  const bool receives = choice.kind == wire::Kind::kRead || choice.kind == wire::Kind::kReadLog ||
                        choice.kind == wire::Kind::kChecksum || choice.kind == wire::Kind::kGather;
  if (!receives) {
    const auto* const own = reinterpret_cast<const std::byte*>(kAddresses[0]);
    CHECK(std::all_of(own, own + kLengths[0],
                      [](std::byte each) { return each == ldd_fuzz::kOpen; }));
  }
}

Flow run(ldd::Exchange& exchange, const ldd_fuzz::Ends& ends, std::span<const std::byte> input,
         std::size_t piece) {
  std::vector<std::byte> said;
  for (int turn = 0;; ++turn) {
    CHECK(turn < kMostTurns);
    input = input.subspan(ends.send(input.first(std::min(piece, input.size()))));
    const Flow flow = exchange.step();
    ends.drain(said);
    if (flow != Flow::kWait && flow != Flow::kGoOn) {
      return flow;
    }
    if (input.empty()) {
      ends.hang_up();
    }
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2 || size > ldd_fuzz::kMaxInput) {
    return 0;
  }
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data) + 2, size - 2);
  const Choice& choice = choice_of(data[0]);
  const bool tagged = data[1] != 255;
  const std::size_t piece = data[1] == 0 || !tagged ? 2 * ldd_fuzz::kMaxInput : data[1];
  const std::vector<std::byte> said = tagged
                                          ? ldd_fuzz::sealed(input, wire::has_answer(choice.kind))
                                          : std::vector<std::byte>(input.begin(), input.end());
  const Arena& arena = Arena::get();
  arena.reset();
  for (std::size_t i = 0; i < kAddresses.size(); ++i) {
    arena.open(kAddresses[i], kAddresses[i] + kLengths[i]);
  }
  const ldd_fuzz::Ends ends;
  ldd::ClientLane lane(ldd::adopt_lane(ends.peer_fd(), {}));
  NoGuard guard;
  const std::uint64_t payload_bytes = choice.kind == wire::Kind::kPush ? 0 : sum_of(choice.pieces);
  const std::span<const std::uint64_t> addresses(kAddresses);
  const std::span<const std::uint64_t> lengths(kLengths);
  const ldd::Cursor payload(addresses.first(choice.pieces), lengths.first(choice.pieces), 0, 0,
                            payload_bytes);
  ldd::Exchange exchange(lane, request_for(choice), payload, guard);
  const Flow flow = run(exchange, ends, said, piece);
  CHECK(flow == Flow::kEnd || flow == Flow::kBroken || flow == Flow::kMalformed ||
        flow == Flow::kForged);
  if (flow == Flow::kEnd) {
    const ldd::Outcome outcome = exchange.outcome();
    CHECK(outcome.code <= ldd::Code::kCancelled);
    CHECK(outcome.index >= -1 && outcome.index < static_cast<std::int64_t>(choice.pieces));
    if (outcome.ok() && choice.kind == wire::Kind::kRead) {
      CHECK(choice.pieces == 2);  // of the third one a half cannot be written
      check_read(choice.pieces, payload_of(input));
    }
  }
  check_memory(choice);
  return 0;
}
