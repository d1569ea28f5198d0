#include "lanes/target/served_lane.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "base/clock.h"
#include "lanes/target/threads.h"

namespace ldd {

namespace {

constexpr int kTurns = 16;                    // system calls for one lane before others are served
constexpr std::size_t kKeptWords = 8 * 1024;  // by an idle lane
constexpr std::size_t kKeptOut = 4 * 1024;
constexpr std::uint32_t kFewDescriptors = 64;
constexpr std::uint64_t kShortBytes = 256 * 1024;
// About the time between two small transfers of one caller, its interpreter included.
constexpr std::int64_t kStayNs = 60'000;
constexpr std::uint32_t kHangUp = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

std::int64_t deadline_of(const wire::Header& header, const wire::Request& request) {
  const std::int64_t now = now_ns();
  const auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max() - now);
  const std::int64_t by_duration =
      now + static_cast<std::int64_t>(std::min(request.remaining_ns, most));
  if ((header.flags & wire::kTargetsClock) == 0) {
    return by_duration;
  }
  return std::min(by_duration, static_cast<std::int64_t>(request.deadline_ns));
}

bool moves_bytes(wire::Kind kind) {
  return kind == wire::Kind::kRead || kind == wire::Kind::kWrite || kind == wire::Kind::kPush;
}

}  // namespace

ServedLane::ServedLane(std::shared_ptr<ServedLinks> links, std::uint64_t link_id, LaneSocket socket,
                       IoThread& thread)
    : links_(std::move(links)),
      link_id_(link_id),
      activity_(links_->activity(link_id)),
      socket_(std::move(socket)),
      thread_(thread) {}

void ServedLane::start() {
  thread_.post([self = shared_from_this()] {
    self->interest_ = EPOLLIN | EPOLLRDHUP;
    if (self->state_ != State::kClosed && !self->thread_.attach(self, self->interest_)) {
      self->close();
    }
  });
}

void ServedLane::shut() {
  cancelled_.store(true);
  thread_.post([self = shared_from_this()] {
    if (!self->on_job_thread()) {
      self->close();
    }
  });
}

void ServedLane::close() {
  if (state_ == State::kClosed) {
    return;
  }
  state_ = State::kClosed;
  cancelled_.store(true);
  const auto self = shared_from_this();
  thread_.detach(*this);
  if (staging_ != nullptr) {
    staging_->stop();
    const auto drained = [self] {
      self->staging_->drain(now_ns() + kDrainNs);
      self->thread_.post([self] { self->leave(); });
    };
    if (staging_->busy() && run_on_job_thread(drained)) {
      return;
    }
  }
  leave();
}

// When it returns, no work of the lane accesses memory any more.
void ServedLane::leave() {
  rights_.reset();
  gathered_.reset();
  socket_.reset();
  links_->remove(link_id_, this);
}

// A copy of a GPU's memory has ended.
void ServedLane::wake() {
  if (awaits_copy_) {
    on_events(0);
  }
}

void ServedLane::on_events(std::uint32_t events) noexcept {
  if ((events & kHangUp) != 0) {
    if (on_job_thread()) {
      cancelled_.store(true);
      thread_.detach(*this);  // take_back() closes it
    } else {
      close();
    }
    return;
  }
  if (on_job_thread()) {
    want(EPOLLRDHUP);  // the job thread reads the next request
    return;
  }
  awaits_copy_ = false;
  try {
    for (int turn = 0; turn < kTurns; ++turn) {
      const Progress progress = step();
      if (progress == Progress::kLent) {
        return;  // only the job thread may access its state now
      }
      if (progress == Progress::kClose) {
        close();
        return;
      }
      if (progress == Progress::kWait) {
        break;
      }
    }
    await_events();
  } catch (...) {  // no memory
    close();
  }
}

void ServedLane::await_events() {
  std::uint32_t wanted = EPOLLRDHUP;
  if (!awaits_copy_ && goes_on_without_input()) {
    wanted |= EPOLLOUT;
  } else if (!awaits_copy_ && state_ != State::kTouching) {
    wanted |= EPOLLIN;
  }
  if (state_ != State::kClosed) {
    want(wanted);
  }
}

// Whether the lane can go on although nothing more arrives: it has bytes to send, or its turns
// ended between the request and the work.
bool ServedLane::goes_on_without_input() const {
  switch (state_) {
    case State::kStream:
    case State::kReply:
    case State::kPush:
    case State::kChecksum:
    case State::kProbe:
      return true;
    default:
      return false;
  }
}

void ServedLane::want(std::uint32_t events) {
  if (events != interest_) {
    interest_ = events;
    thread_.change(*this, events);
  }
}

ServedLane::Progress ServedLane::step() {
  switch (state_) {
    case State::kPrefix:
      return read_prefix();
    case State::kWords:
      return read_words();
    case State::kStream:
      return stream();
    case State::kPayload:
      return payload();
    case State::kReply:
      return send_reply();
    case State::kPush:
      return on_job_thread() ? push() : lend();
    case State::kChecksum:
      return on_job_thread() ? checksum() : lend();
    case State::kProbe:
      return on_job_thread() ? Progress::kWait : probe();
    case State::kTouching:
    case State::kClosed:
      break;
  }
  return Progress::kWait;
}

ServedLane::Progress ServedLane::read_prefix() {
  iovec rest{prefix_.data() + prefix_filled_, prefix_.size() - prefix_filled_};
  const ssize_t got = receive_pieces(socket_.get(), {&rest, 1});
  if (got < 0) {
    return got == -EAGAIN ? Progress::kWait : Progress::kClose;
  }
  prefix_filled_ += static_cast<std::size_t>(got);
  const std::span<const std::byte, wire::kRequestFrameBytes> bytes(prefix_);
  if (!header_ && prefix_filled_ >= wire::kHeaderBytes) {
    header_ = wire::decode_header(bytes.first<wire::kHeaderBytes>());
    if (!header_ || !wire::is_request(header_->kind)) {
      return forged();
    }
  }
  if (prefix_filled_ < prefix_.size()) {
    return Progress::kGoOn;
  }
  const auto request = wire::decode_request(*header_, bytes.last<wire::kRequestBytes>());
  if (!request) {
    return forged();  // it is unknown how much the tag covers
  }
  request_ = *request;
  words_.resize(request_.count * wire::words_per_descriptor(header_->kind));
  words_filled_ = 0;
  state_ = State::kWords;
  return words_.empty() ? begin() : Progress::kGoOn;
}

ServedLane::Progress ServedLane::read_words() {
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(words_));
  iovec rest{bytes.data() + words_filled_, bytes.size() - words_filled_};
  const ssize_t got = receive_pieces(socket_.get(), {&rest, 1});
  if (got < 0) {
    return got == -EAGAIN ? Progress::kWait : Progress::kClose;
  }
  words_filled_ += static_cast<std::size_t>(got);
  if (words_filled_ < bytes.size()) {
    return Progress::kGoOn;
  }
  return begin();
}

ServedLane::Progress ServedLane::begin() {
  if (!socket_.received.check(prefix_, std::as_bytes(std::span(words_)))) {
    return forged();
  }
  wire::convert_words(words_);
  Node& node = links_->node();
  if (node.closed() || cancelled_.load() || socket_.carrier_hung_up()) {
    return Progress::kClose;
  }
  links_->counts().requests.fetch_add(1, std::memory_order_relaxed);
  activity_->requests.fetch_add(1, std::memory_order_relaxed);
  deadline_ns_ = deadline_of(*header_, request_);
  if (header_->kind != wire::Kind::kGather) {
    gathered_.reset();  // the initiator has read the bytes
  }
  switch (header_->kind) {
    case wire::Kind::kRead:
      return begin_read();
    case wire::Kind::kWrite:
      return begin_write();
    case wire::Kind::kPush:
      return begin_push();
    case wire::Kind::kChecksum:
      return begin_checksum();
    case wire::Kind::kProbe:
      return begin_probe();
    case wire::Kind::kGather:
      return begin_gather();
    case wire::Kind::kConsume:
      if (now_ns() >= deadline_ns_) {
        return reply(Outcome::failure(Code::kTimeout));
      }
      return reply(node.consume({request_.key_index, request_.key_value})
                       ? Outcome{}
                       : Outcome::failure(Code::kGone));
    case wire::Kind::kDirectoryVersion:
      return reply_version();
    case wire::Kind::kReadLog:
      return reply_log();
    case wire::Kind::kPing:
      return reply({});
    default:
      return protocol_error();
  }
}

ServedLane::Progress ServedLane::reply_log() {
  const auto bytes = links_->node().view().read_log(request_.offset, request_.size);
  Outcome outcome;
  outcome.moved_bytes = bytes.size();
  return reply(outcome, bytes);
}

ServedLane::Progress ServedLane::reply(const Outcome& outcome, std::span<const std::byte> answer) {
  if (!outcome.ok()) {
    links_->counts().refused.fetch_add(1, std::memory_order_relaxed);
  }
  rights_.reset();
  out_.clear();
  if (!answer.empty()) {
    auto head = wire::encode_header(
        {wire::Kind::kChunk, 0, static_cast<std::uint32_t>(answer.size()), header_->sequence});
    socket_.sent.seal(head);
    out_.assign(head.begin(), head.end());
    out_.insert(out_.end(), answer.begin(), answer.end());
  }
  const auto frame = outcome_frame(outcome, answer);
  out_.insert(out_.end(), frame.begin(), frame.end());
  return send_out(State::kPrefix);
}

ServedLane::Progress ServedLane::reply_version() {
  auto frame =
      wire::encode_outcome(header_->sequence, {Outcome{}, links_->node().view().version()});
  socket_.sent.seal(frame);
  out_.assign(frame.begin(), frame.end());
  return send_out(State::kPrefix);
}

// Makes the next frame to send; it carries the time of this process's clock.
wire::OutcomeFrame ServedLane::outcome_frame(const Outcome& outcome,
                                             std::span<const std::byte> answer) {
  const std::uint32_t sequence = header_ ? header_->sequence : 0;
  auto frame = wire::encode_outcome(sequence, {outcome, static_cast<std::uint64_t>(now_ns())});
  socket_.sent.seal(frame, answer);
  return frame;
}

ServedLane::Progress ServedLane::send_out(State then) {
  out_sent_ = 0;
  after_reply_ = then;
  state_ = State::kReply;
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::send_reply() {
  iovec rest{out_.data() + out_sent_, out_.size() - out_sent_};
  const ssize_t sent = send_pieces(socket_.get(), {&rest, 1}, false);
  if (sent < 0) {
    return sent == -EAGAIN ? Progress::kWait : Progress::kClose;
  }
  out_sent_ += static_cast<std::size_t>(sent);
  if (out_sent_ < out_.size()) {
    return Progress::kGoOn;
  }
  if (out_.capacity() > kKeptOut) {
    std::vector<std::byte>().swap(out_);
  }
  if (after_reply_ == State::kPrefix) {
    return await_request();
  }
  state_ = after_reply_;
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::await_request() {
  if (header_ && moves_bytes(header_->kind) && request_.count <= kFewDescriptors &&
      requested_bytes() <= kShortBytes) {
    const std::int64_t until_ns = now_ns() + kStayNs;
    if (on_job_thread()) {
      stay_until_ns_ = until_ns;
    } else {
      thread_.stay_awake(until_ns);
    }
  }
  prefix_filled_ = 0;
  header_.reset();
  if (words_.capacity() > kKeptWords) {
    std::vector<std::uint64_t>().swap(words_);
  }
  state_ = State::kPrefix;
  return Progress::kWait;  // mostly nothing has arrived yet; saves a system call
}

ServedLane::Progress ServedLane::protocol_error() {
  links_->offend(link_id_, false);
  auto frame = outcome_frame(Outcome::failure(Code::kProtocol));
  iovec whole{frame.data(), frame.size()};
  [[maybe_unused]] const ssize_t sent = send_pieces(socket_.get(), {&whole, 1}, false);
  return Progress::kClose;
}

// Ends without a reply, which an attacker could use.
ServedLane::Progress ServedLane::forged() {
  links_->offend(link_id_, false);
  return Progress::kClose;
}

Outcome ServedLane::check_rights(Access access) {
  return rights_.check(links_->node(), request_, deadline_ns_, access, column(0), column(1));
}

std::span<const std::uint64_t> ServedLane::column(std::size_t which) const {
  return std::span(words_).subspan(which * request_.count, request_.count);
}

std::uint64_t ServedLane::requested_bytes() const {
  std::uint64_t sum = 0;
  for (const std::uint64_t length : column(1)) {
    sum = length > std::numeric_limits<std::uint64_t>::max() - sum
              ? std::numeric_limits<std::uint64_t>::max()
              : sum + length;
  }
  return sum;
}

}  // namespace ldd
