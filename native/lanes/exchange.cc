#include "lanes/exchange.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "base/clock.h"

namespace ldd {

namespace {

constexpr int kTurns = 16;  // system calls before deadline and other lanes are looked at

}  // namespace

void set_deadline(wire::Request& request, std::int64_t deadline_ns) {
  const auto whole = static_cast<std::uint64_t>(std::max<std::int64_t>(deadline_ns, 0));
  const auto left = static_cast<std::uint64_t>(std::max<std::int64_t>(deadline_ns - now_ns(), 0));
  request.deadline_ns = std::min(whole, wire::kMaxRemainingNs);
  request.remaining_ns = std::min(left, wire::kMaxRemainingNs);
}

Exchange::Exchange(ClientLane& lane, Ask ask, const Cursor& payload, BatchGuard& guard)
    : lane_(lane), ask_(std::move(ask)), guard_(guard), payload_bytes_(payload.left()) {
  const std::uint32_t sequence = ++lane_.sequence;
  unsigned flags = lane_.clocks_shared || ask_.kind == wire::Kind::kPush ? wire::kClocksShared : 0U;
  if (inline_payload()) {
    flags |= wire::kInlinePayload;
  }
  frame_ =
      wire::encode_request(ask_.kind, static_cast<std::uint16_t>(flags), sequence, ask_.request);
  wire::convert_words(ask_.words);
  const bool writes = ask_.kind == wire::Kind::kWrite;
  sender_.begin(sequence, writes ? payload : Cursor{}, Code::kLocalFault);
  receiver_.begin(sequence, writes ? Cursor{} : payload, Code::kLocalFault);
}

bool Exchange::inline_payload() const {
  return ask_.kind == wire::Kind::kWrite && payload_bytes_ <= wire::kMaxInlineBytes;
}

Flow Exchange::step() {
  for (int turn = 0; turn < kTurns; ++turn) {
    const Flow flow = step_once();
    if (flow != Flow::kGoOn) {
      return flow;
    }
  }
  return Flow::kGoOn;
}

Flow Exchange::step_once() {
  switch (phase_) {
    case Phase::kRequest:
      return send_request();
    case Phase::kAwaitGo:
      return await_go();
    case Phase::kPayload:
      return send_payload();
    case Phase::kClosing:
      return send_closing();
    case Phase::kReply:
      return await_reply();
    case Phase::kDone:
      break;
  }
  return Flow::kEnd;
}

short Exchange::events() const {
  const bool sends =
      phase_ == Phase::kRequest || phase_ == Phase::kPayload || phase_ == Phase::kClosing;
  return static_cast<short>((sends ? POLLOUT : POLLIN) | POLLRDHUP);
}

Flow Exchange::send_request() {
  const auto words = std::as_writable_bytes(std::span(ask_.words));
  std::array<iovec, 2> pieces{};
  std::size_t count = 0;
  if (request_sent_ < frame_.size()) {
    pieces[count++] = {frame_.data() + request_sent_, frame_.size() - request_sent_};
  }
  const std::size_t of_words = request_sent_ - std::min(request_sent_, frame_.size());
  if (of_words < words.size()) {
    pieces[count++] = {words.data() + of_words, words.size() - of_words};
  }
  const ssize_t sent =
      send_pieces(fd(), std::span(pieces).first(count), inline_payload() && payload_bytes_ > 0);
  if (sent < 0) {
    return sent == -EAGAIN ? Flow::kWait : Flow::kBroken;
  }
  request_sent_ += static_cast<std::size_t>(sent);
  if (request_sent_ == frame_.size() + words.size()) {
    if (ask_.kind != wire::Kind::kWrite) {
      phase_ = Phase::kReply;
    } else {
      phase_ = inline_payload() ? Phase::kPayload : Phase::kAwaitGo;
    }
  }
  return Flow::kGoOn;
}

Flow Exchange::await_go() {
  const Flow flow = receiver_.step(fd(), guard_);
  if (flow == Flow::kGo) {
    phase_ = Phase::kPayload;
    return Flow::kGoOn;
  }
  if (flow == Flow::kEnd) {
    phase_ = Phase::kDone;
    return receiver_.reply().outcome.ok() || !reply_plausible() ? Flow::kMalformed : Flow::kEnd;
  }
  return flow == Flow::kFailed ? Flow::kMalformed : flow;
}

Flow Exchange::send_payload() {
  // Between chunks, has the target given up on this write already?
  if (sender_.between_chunks() && !answered_ && !inline_payload()) {
    const Flow early = receiver_.step(fd(), guard_);
    if (early == Flow::kEnd) {
      if (receiver_.reply().outcome.ok() || !reply_plausible()) {
        return Flow::kMalformed;
      }
      answered_ = true;
      sender_.stop(receiver_.reply().outcome);
    } else if (early != Flow::kWait && early != Flow::kGoOn) {
      return early == Flow::kBroken ? early : Flow::kMalformed;
    }
  }
  const Flow flow = sender_.step(fd(), guard_);
  if (flow == Flow::kEnd) {
    const Outcome ended = Outcome::failure(sender_.failure().code);
    closing_ = wire::encode_outcome(lane_.sequence, {ended, 0});
    phase_ = Phase::kClosing;
    return Flow::kGoOn;
  }
  return flow;
}

Flow Exchange::send_closing() {
  iovec rest{closing_.data() + closing_sent_, closing_.size() - closing_sent_};
  const ssize_t sent = send_pieces(fd(), {&rest, 1}, false);
  if (sent < 0) {
    return sent == -EAGAIN ? Flow::kWait : Flow::kBroken;
  }
  closing_sent_ += static_cast<std::size_t>(sent);
  if (closing_sent_ == closing_.size()) {
    phase_ = answered_ ? Phase::kDone : Phase::kReply;
  }
  return Flow::kGoOn;
}

Flow Exchange::await_reply() {
  const Flow flow = receiver_.step(fd(), guard_);
  if (flow == Flow::kFailed) {
    return Flow::kGoOn;  // what is still to come is dropped
  }
  if (flow == Flow::kGo) {
    return Flow::kMalformed;
  }
  if (flow == Flow::kEnd) {
    phase_ = Phase::kDone;
    const bool sends_all = ask_.kind == wire::Kind::kRead || ask_.kind == wire::Kind::kChecksum;
    const bool short_read = sends_all && receiver_.reply().outcome.ok() && receiver_.unread() != 0;
    return short_read || !reply_plausible() ? Flow::kMalformed : Flow::kEnd;
  }
  return flow;
}

bool Exchange::reply_plausible() const {
  const Outcome& there = receiver_.reply().outcome;
  return there.index >= -1 && there.index < static_cast<std::int64_t>(ask_.request.count);
}

Outcome Exchange::outcome() const {
  Outcome outcome = receiver_.reply().outcome;
  if (outcome.index >= 0) {
    outcome.index += static_cast<std::int64_t>(ask_.first_descriptor);
  }
  if (!answered_) {  // own failures count in the caller's arrays already
    for (const Outcome& here : {sender_.failure(), receiver_.failure()}) {
      outcome = here.ok() ? outcome : here;
    }
  }
  outcome.moved_bytes = moved_bytes();
  return outcome;
}

std::uint64_t Exchange::moved_bytes() const {
  switch (ask_.kind) {
    case wire::Kind::kRead:
    case wire::Kind::kReadLog:
      return payload_bytes_ - receiver_.left();
    case wire::Kind::kWrite:
    case wire::Kind::kPush:
      return phase_ == Phase::kDone ? receiver_.reply().outcome.moved_bytes : 0;
    default:
      return 0;
  }
}

}  // namespace ldd
