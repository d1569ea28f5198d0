#include "lanes/initiator/exchange.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "base/clock.h"
#include "lanes/replies.h"

namespace ldd {

namespace {

constexpr int kTurns = 16;  // system calls before the deadline and other lanes are checked

std::uint64_t capped(std::int64_t ns) {
  constexpr auto kMost = static_cast<std::int64_t>(wire::kMaxRemainingNs);
  return static_cast<std::uint64_t>(std::clamp<std::int64_t>(ns, 0, kMost));
}

}  // namespace

Staging& ClientLane::staging() {
  if (staged == nullptr || !woken->valid()) {
    woken = std::make_shared<LaneFd>(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    const Outcome usable = woken->valid() ? Outcome{} : Outcome::failure(Code::kSystem, errno);
    const auto wake = [fd = woken] {
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto written = ::write(fd->get(), &one, sizeof one);
    };
    staged = std::make_unique<Staging>(wake, usable);
  }
  return *staged;
}

Exchange::Exchange(ClientLane& lane, LaneRequest request, const Cursor& payload, BatchGuard& guard,
                   int device)
    : lane_(lane), request_(std::move(request)), guard_(guard), payload_bytes_(payload.left()) {
  const std::uint32_t sequence = ++lane_.sequence;
  set_deadline();
  unsigned flags = wire::kTargetsClock;
  if (inline_payload()) {
    flags |= wire::kInlinePayload;
  }
  frame_ = wire::encode_request(request_.kind, static_cast<std::uint16_t>(flags), sequence,
                                request_.fixed);
  wire::convert_words(request_.words);
  const bool writes = request_.kind == wire::Kind::kWrite;
  const Place local = place(device);
  const Place host;
  sender_.begin(sequence, writes ? payload : Cursor{}, Code::kLocalFault, writes ? local : host);
  receiver_.begin(sequence, writes ? Cursor{} : payload, Code::kLocalFault,
                  wire::has_answer(request_.kind), writes ? host : local);
  sender_.prepare(guard_);
}

Place Exchange::place(int device) {
  return device == kHostMemory ? Place{} : Place{&lane_.staging(), device, request_.deadline_ns};
}

void Exchange::set_deadline() {
  asked_ns_ = now_ns();
  request_.fixed.deadline_ns = capped(lane_.clock->target_ns(request_.deadline_ns));
  request_.fixed.remaining_ns = capped(request_.deadline_ns - asked_ns_);
}

bool Exchange::inline_payload() const {
  return request_.kind == wire::Kind::kWrite && payload_bytes_ <= wire::kMaxInlineBytes;
}

Flow Exchange::step() {
  if (staging_) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(lane_.staging_fd(), &count, sizeof count);
    staging_ = false;
  }
  for (int turn = 0; turn < kTurns; ++turn) {
    const Flow flow = step_once();
    if (flow != Flow::kGoOn) {
      staging_ = flow == Flow::kStaging;
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

pollfd Exchange::awaited() const {
  if (staging_) {
    return {lane_.staging_fd(), POLLIN, 0};
  }
  const bool sends =
      phase_ == Phase::kRequest || phase_ == Phase::kPayload || phase_ == Phase::kClosing;
  return {fd(), static_cast<short>((sends ? POLLOUT : POLLIN) | POLLRDHUP), 0};
}

void Exchange::stop_copies() {
  if (lane_.staged != nullptr) {
    lane_.staged->stop();
  }
}

void Exchange::drain_copies(std::int64_t until_ns) const {
  if (lane_.staged != nullptr && request_.kind == wire::Kind::kRead) {
    lane_.staged->drain(until_ns);
  }
}

Flow Exchange::send_request() {
  const auto words = std::as_writable_bytes(std::span(request_.words));
  if (!sealed_) {  // not earlier: a request that is never sent must not count
    lane_.socket.sent.seal(frame_, words);
    sealed_ = true;
  }
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
    if (request_.kind != wire::Kind::kWrite) {
      phase_ = Phase::kReply;
    } else {
      phase_ = inline_payload() ? Phase::kPayload : Phase::kAwaitGo;
    }
  }
  return Flow::kGoOn;
}

Flow Exchange::await_go() {
  const Flow flow = receiver_.step(lane_.socket, guard_);
  if (flow == Flow::kGo) {
    phase_ = Phase::kPayload;
    return Flow::kGoOn;
  }
  if (flow == Flow::kEnd) {
    phase_ = Phase::kDone;
    return judge(true);
  }
  return flow == Flow::kFailed ? Flow::kMalformed : flow;
}

Flow Exchange::send_payload() {
  // Between chunks: the target may have given up this write already.
  if (sender_.between_chunks() && !answered_ && !inline_payload()) {
    const Flow early = receiver_.step(lane_.socket, guard_);
    if (early == Flow::kEnd) {
      if (judge(true) != Flow::kEnd) {
        return Flow::kMalformed;
      }
      answered_ = true;
      sender_.stop(receiver_.reply().outcome);
    } else if (early != Flow::kWait && early != Flow::kGoOn) {
      return early == Flow::kBroken ? early : Flow::kMalformed;
    }
  }
  const Flow flow = sender_.step(lane_.socket, guard_);
  if (flow == Flow::kEnd) {
    const Outcome ended = Outcome::failure(closing_code());
    closing_ = wire::encode_outcome(lane_.sequence, {ended, 0});
    lane_.socket.sent.seal(closing_);
    phase_ = Phase::kClosing;
    return Flow::kGoOn;
  }
  return flow;
}

// How the payload of a write ends: a target knows no other failures of an initiator.
Code Exchange::closing_code() const {
  const Code code = sender_.failure().code;
  return answered_ || may_end_payload(code) ? code : Code::kLocalFault;
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
  const Flow flow = receiver_.step(lane_.socket, guard_);
  if (flow == Flow::kFailed) {
    return Flow::kGoOn;  // the remaining payload is discarded
  }
  if (flow == Flow::kGo) {
    return Flow::kMalformed;
  }
  if (flow == Flow::kEnd) {
    phase_ = Phase::kDone;
    return judge(false);
  }
  return flow;
}

Flow Exchange::judge(bool early) {
  const wire::Reply& reply = receiver_.reply();
  const Expected expected{request_.fixed.count, requested_bytes(), receiver_.unread(),
                          closing_code(), early};
  if (!may_answer(request_.kind, reply, expected)) {
    return Flow::kMalformed;
  }
  if (request_.kind != wire::Kind::kDirectoryVersion) {
    lane_.clock->learn(static_cast<std::int64_t>(reply.value), asked_ns_, now_ns());
  }
  return Flow::kEnd;
}

std::uint64_t Exchange::requested_bytes() const {
  if (request_.kind != wire::Kind::kPush) {
    return payload_bytes_;
  }
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < request_.fixed.count; ++i) {
    std::uint64_t length = request_.words[request_.fixed.count + i];
    wire::convert_words({&length, 1});  // the words are in wire order already
    sum += length;
  }
  return sum;
}

Outcome Exchange::outcome() const {
  Outcome outcome = receiver_.reply().outcome;
  if (outcome.index >= 0) {
    outcome.index += static_cast<std::int64_t>(request_.first_descriptor);
  }
  if (!answered_) {  // local failures count in the caller's arrays already
    for (const Outcome& local : {sender_.failure(), receiver_.failure()}) {
      outcome = local.ok() ? outcome : local;
    }
  }
  outcome.moved_bytes = moved_bytes();
  return outcome;
}

std::uint64_t Exchange::moved_bytes() const {
  switch (request_.kind) {
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
