// READ: sends the bytes from registered memory to the socket, then the outcome.
// WRITE: receives the payload from the socket directly into registered memory, and sends the
// outcome when the last byte is in place.
#include "lanes/replies.h"
#include "lanes/target/served_lane.h"

namespace ldd {

// Checks the deadline and the entries before every batch, and for a write the connection too: a
// target that was frozen must apply nothing for an initiator that has given up meanwhile.
Outcome ServedLane::take(std::vector<Use>& uses) {
  const Outcome taken = rights_.take(uses);
  if (taken.ok() && state_ == State::kPayload && socket_.hung_up()) {
    return Outcome::failure(Code::kCancelled);
  }
  return taken;
}

// Where the memory of the request is. Bytes of a GPU pass through pinned memory of the lane.
Place ServedLane::place() {
  if (rights_.device() == kHostMemory) {
    return {};
  }
  if (staging_ == nullptr) {
    staging_ = std::make_unique<Staging>([weak = weak_from_this()] {
      if (const auto self = weak.lock()) {
        self->thread_.post([self] { self->wake(); });
      }
    });
  }
  return {staging_.get(), rights_.device(), deadline_ns_};
}

ServedLane::Progress ServedLane::await_copy() {
  awaits_copy_ = true;
  return Progress::kWait;
}

ServedLane::Progress ServedLane::begin_read() {
  const Outcome checked = check_rights(Access::kLane);
  if (!checked.ok()) {
    return reply(checked);
  }
  sender_.begin(header_->sequence, Cursor(column(0), column(1), 0, 0, requested_bytes()),
                Code::kRemoteFault, place());
  state_ = State::kStream;
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::stream() {
  switch (sender_.step(socket_, *this)) {
    case Flow::kGoOn:
      return Progress::kGoOn;
    case Flow::kWait:
      return Progress::kWait;
    case Flow::kStaging:
      return await_copy();
    case Flow::kEnd:
      break;
    default:
      return Progress::kClose;
  }
  Outcome outcome = sender_.failure();
  if (outcome.ok() && !rights_.key_live()) {
    outcome = Outcome::failure(Code::kGone);
  }
  outcome.moved_bytes = requested_bytes() - sender_.left();
  links_->counts().read_bytes.fetch_add(outcome.moved_bytes, std::memory_order_relaxed);
  return reply(outcome);
}

ServedLane::Progress ServedLane::begin_write() {
  const bool at_once = (header_->flags & wire::kInlinePayload) != 0;
  const std::uint64_t bytes = requested_bytes();
  if (at_once && bytes > wire::kMaxInlineBytes) {
    return protocol_error();
  }
  const Outcome checked = check_rights(Access::kLane);
  if (!at_once && !checked.ok()) {
    return reply(checked);
  }
  answered_ = false;
  receiver_.begin(header_->sequence, Cursor(column(0), column(1), 0, 0, bytes), Code::kRemoteFault,
                  false, checked.ok() ? place() : Place{});
  if (!checked.ok()) {
    receiver_.stop(checked);
  }
  state_ = State::kPayload;
  if (!at_once) {
    auto go = wire::encode_header({wire::Kind::kGo, 0, 0, header_->sequence});
    socket_.sent.seal(go);
    out_.assign(go.begin(), go.end());
    return send_out(State::kPayload);
  }
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::payload() {
  switch (receiver_.step(socket_, *this)) {
    case Flow::kGoOn:
      return Progress::kGoOn;
    case Flow::kWait:
      return Progress::kWait;
    case Flow::kStaging:
      return await_copy();
    case Flow::kFailed:
      return fail_write();
    case Flow::kEnd:
      return end_write();
    case Flow::kBroken:
      return Progress::kClose;
    case Flow::kForged:
      return forged();
    default:
      return protocol_error();
  }
}

// Sends the outcome at once; the initiator then ends the payload early.
ServedLane::Progress ServedLane::fail_write() {
  Outcome outcome = receiver_.failure();
  if (outcome.code == Code::kCancelled) {
    return Progress::kClose;
  }
  outcome.moved_bytes = requested_bytes() - receiver_.left();
  links_->counts().refused.fetch_add(1, std::memory_order_relaxed);
  rights_.reset();
  answered_ = true;
  // Nothing else is being sent to the initiator, so this small frame always fits the socket.
  auto frame = outcome_frame(outcome);
  iovec whole{frame.data(), frame.size()};
  const ssize_t sent = send_pieces(socket_.get(), {&whole, 1}, false);
  return sent == static_cast<ssize_t>(frame.size()) ? Progress::kGoOn : Progress::kClose;
}

ServedLane::Progress ServedLane::end_write() {
  Outcome outcome = receiver_.reply().outcome;
  const bool may_end = answered_ || may_end_payload(outcome.code);
  if (!may_end || (outcome.ok() && receiver_.unread() != 0)) {
    return protocol_error();
  }
  const std::uint64_t moved_bytes = requested_bytes() - receiver_.left();
  links_->counts().written_bytes.fetch_add(moved_bytes, std::memory_order_relaxed);
  if (answered_) {
    return await_request();
  }
  if (!receiver_.failure().ok()) {
    outcome = receiver_.failure();
  }
  outcome.moved_bytes = moved_bytes;
  return reply(outcome);
}

}  // namespace ldd
