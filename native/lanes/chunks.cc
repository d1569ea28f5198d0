#include "lanes/chunks.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

#include "copy/descriptors.h"

namespace ldd {

namespace {

// Per thread, on the heap: thread-local storage itself is scarce in a module that is loaded late.
std::span<iovec> piece_room() {
  thread_local std::vector<iovec> room(kMaxIovecs);
  return room;
}

// Bytes that nobody wants end here.
std::span<std::byte> scratch_room() {
  thread_local std::vector<std::byte> room(64 * 1024);
  return room;
}

std::span<std::byte> zeroes() {
  static std::array<std::byte, 64 * 1024> none{};
  return none;
}

Flow flow_of_error(ssize_t error) { return error == -EAGAIN ? Flow::kWait : Flow::kBroken; }

}  // namespace

void ChunkSender::begin(std::uint32_t sequence, const Cursor& cursor, Code fault) {
  sequence_ = sequence;
  cursor_ = cursor;
  fault_ = fault;
  failure_ = {};
  careful_ = false;
  header_left_ = 0;
  chunk_left_ = 0;
}

void ChunkSender::stop(const Outcome& why) {
  if (failure_.ok()) {
    failure_ = why;
  }
}

Flow ChunkSender::fail(const Outcome& why, wire::Tags& tags) {
  failure_ = why;
  if (header_left_ == header_.size()) {  // the peer does not know of this chunk yet
    tags.take_back();
    header_left_ = 0;
    chunk_left_ = 0;
  }
  return Flow::kGoOn;
}

void ChunkSender::open_chunk(wire::Tags& tags) {
  chunk_left_ = std::min<std::uint64_t>(cursor_.left(), wire::kMaxChunkBytes);
  header_ = wire::encode_header(
      {wire::Kind::kChunk, 0, static_cast<std::uint32_t>(chunk_left_), sequence_});
  tags.seal(header_);
  header_left_ = header_.size();
}

Flow ChunkSender::step(LaneSocket& lane, BatchGuard& guard) {
  if (chunk_left_ == 0) {
    if (cursor_.done() || !failure_.ok()) {
      return Flow::kEnd;
    }
    open_chunk(lane.sent);
  }
  if (failure_.ok()) {
    const Outcome taken = guard.take(uses_);
    if (!taken.ok()) {
      uses_.clear();
      return fail(taken, lane.sent);
    }
  }
  const std::span<iovec> pieces = piece_room();
  std::size_t count = 0;
  if (header_left_ > 0) {
    pieces[count++] = {header_.data() + header_.size() - header_left_, header_left_};
  }
  if (!failure_.ok()) {
    pieces[count++] = {zeroes().data(), std::min<std::size_t>(chunk_left_, zeroes().size())};
  } else if (!careful_) {
    count += cursor_.fill(pieces.subspan(count), chunk_left_).pieces;
  } else if (count == 0) {
    count = cursor_.fill(pieces.first(1), chunk_left_).pieces;
  }
  // The outcome that follows the last chunk shall travel in one segment with its end.
  const bool last_chunk = failure_.ok() && chunk_left_ == cursor_.left();
  const ssize_t sent = send_pieces(lane.get(), pieces.first(count), last_chunk);
  uses_.clear();
  if (sent == -EFAULT && failure_.ok()) {
    if (careful_) {
      return fail(Outcome::failure(fault_, EFAULT, static_cast<std::int64_t>(cursor_.index())),
                  lane.sent);
    }
    careful_ = true;
    return Flow::kGoOn;
  }
  if (sent < 0) {
    return flow_of_error(sent);
  }
  const std::size_t of_header = std::min(static_cast<std::size_t>(sent), header_left_);
  const std::uint64_t of_payload = static_cast<std::size_t>(sent) - of_header;
  header_left_ -= of_header;
  chunk_left_ -= of_payload;
  if (failure_.ok()) {
    cursor_.advance(of_payload);
  }
  return Flow::kGoOn;
}

void ChunkReceiver::begin(std::uint32_t sequence, const Cursor& cursor, Code fault, bool answer) {
  sequence_ = sequence;
  cursor_ = cursor;
  fault_ = fault;
  failure_ = {};
  careful_ = false;
  frame_filled_ = 0;
  frame_wanted_ = wire::kHeadBytes;
  chunk_left_ = 0;
  unread_ = cursor.left();
  iovec whole{};
  if (answer && cursor.fill({&whole, 1}, unread_).bytes == unread_) {
    answer_ = {static_cast<const std::byte*>(whole.iov_base), whole.iov_len};
  } else {
    answer_ = {};
  }
}

std::span<const std::byte> ChunkReceiver::answer_so_far() const {
  return answer_.empty() ? answer_ : answer_.first(answer_.size() - unread_);
}

Flow ChunkReceiver::fail(const Outcome& why) {
  failure_ = why;
  return Flow::kFailed;
}

Flow ChunkReceiver::step(LaneSocket& lane, BatchGuard& guard) {
  return chunk_left_ > 0 ? receive_payload(lane, guard) : receive_frame(lane);
}

Flow ChunkReceiver::receive_payload(LaneSocket& lane, BatchGuard& guard) {
  if (failure_.ok()) {
    const Outcome taken = guard.take(uses_);
    if (!taken.ok()) {
      uses_.clear();
      return fail(taken);
    }
  }
  const std::span<iovec> pieces = piece_room();
  std::size_t count = 1;
  if (failure_.ok()) {
    const auto filled = cursor_.fill(pieces.first(careful_ ? 1 : pieces.size() - 1), chunk_left_);
    count = filled.pieces;
    if (!careful_ && filled.bytes == chunk_left_) {
      // What follows is another chunk's header, or the outcome after the last chunk.
      frame_wanted_ = chunk_left_ == unread_ ? frame_.size() : wire::kHeadBytes;
      pieces[count++] = {frame_.data(), frame_wanted_};
    }
  } else {
    const auto scratch = scratch_room();
    pieces[0] = {scratch.data(), std::min<std::size_t>(chunk_left_, scratch.size())};
  }
  const ssize_t got = receive_pieces(lane.get(), pieces.first(count));
  uses_.clear();
  if (got == -EFAULT && failure_.ok()) {
    if (careful_) {
      return fail(Outcome::failure(fault_, EFAULT, static_cast<std::int64_t>(cursor_.index())));
    }
    careful_ = true;
    return Flow::kGoOn;
  }
  if (got < 0) {
    return flow_of_error(got);
  }
  const auto all = static_cast<std::size_t>(got);
  const std::uint64_t of_payload = std::min<std::uint64_t>(all, chunk_left_);
  frame_filled_ = all - of_payload;
  chunk_left_ -= of_payload;
  unread_ -= of_payload;
  if (failure_.ok()) {
    cursor_.advance(of_payload);
  }
  return frame_filled_ > 0 ? parse_frame(lane.received) : Flow::kGoOn;
}

Flow ChunkReceiver::receive_frame(LaneSocket& lane) {
  if (frame_filled_ == 0) {
    frame_wanted_ = unread_ == 0 ? frame_.size() : wire::kHeadBytes;
  }
  iovec rest{frame_.data() + frame_filled_, frame_wanted_ - frame_filled_};
  const ssize_t got = receive_pieces(lane.get(), {&rest, 1});
  if (got < 0) {
    return flow_of_error(got);
  }
  frame_filled_ += static_cast<std::size_t>(got);
  return parse_frame(lane.received);
}

// Takes what has come of a frame; its header is judged as soon as it is there, its tag before
// anything of it counts.
Flow ChunkReceiver::parse_frame(wire::Tags& tags) {
  const std::span<const std::byte, wire::kOutcomeFrameBytes> bytes(frame_);
  if (frame_filled_ < wire::kHeaderBytes) {
    return Flow::kGoOn;
  }
  const auto header = wire::decode_header(bytes.first<wire::kHeaderBytes>());
  if (!header) {
    return Flow::kForged;
  }
  const bool outcome = header->kind == wire::Kind::kOutcome;
  const std::size_t covered = outcome ? frame_.size() : wire::kHeadBytes;
  if (frame_filled_ < covered) {
    frame_wanted_ = covered;
    return Flow::kGoOn;
  }
  if (!tags.check(bytes.first(covered), outcome ? answer_so_far() : answer_.first(0))) {
    return Flow::kForged;
  }
  if (header->sequence != sequence_ || frame_filled_ > covered) {
    return Flow::kMalformed;
  }
  if (outcome) {
    return take_outcome();
  }
  frame_filled_ = 0;
  if (header->kind == wire::Kind::kGo) {
    return Flow::kGo;
  }
  if (header->kind != wire::Kind::kChunk || header->body_bytes > unread_) {
    return Flow::kMalformed;
  }
  chunk_left_ = header->body_bytes;
  return Flow::kGoOn;
}

Flow ChunkReceiver::take_outcome() {
  const auto reply = wire::decode_outcome(
      std::span<const std::byte, wire::kOutcomeFrameBytes>(frame_).last<wire::kOutcomeBytes>());
  if (!reply) {
    return Flow::kMalformed;
  }
  reply_ = *reply;
  return Flow::kEnd;
}

}  // namespace ldd
