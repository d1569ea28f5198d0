#include "lanes/chunks.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

#include "copy/descriptors.h"
#include "lanes/gather.h"

namespace ldd {

namespace {

// Mean bytes of a piece below which copying it costs less than a range of a system call.
constexpr std::uint64_t kSmallPiece = 768;
constexpr std::size_t kFewPieces = 8;

// Per thread and on the heap: a module loaded late has little thread-local storage.
std::span<iovec> piece_room() {
  thread_local std::vector<iovec> room(kMaxIovecs);
  return room;
}

// Receives bytes that are discarded.
std::span<std::byte> scratch_room() {
  thread_local std::vector<std::byte> room(64 * 1024);
  return room;
}

std::span<std::byte> zeroes() {
  static std::array<std::byte, 64 * 1024> none{};
  return none;
}

std::span<std::byte> gathering_room() {
  thread_local std::vector<std::byte> room(64 * 1024);
  return room;
}

// Describes at most `limit` bytes from the position on in `pieces`; returns how many there are. If
// they are small, a buffer of the thread gets their bytes: a socket takes one range faster.
std::size_t describe(const Cursor& cursor, std::span<iovec> pieces, std::uint64_t limit) {
  const Cursor::Filled filled = cursor.fill(pieces, limit, true);
  if (filled.pieces < kFewPieces || filled.bytes >= filled.pieces * kSmallPiece) {
    return filled.pieces;
  }
  const std::span<std::byte> room = gathering_room();
  const Gathered gathered = gather(cursor, room.first(std::min<std::size_t>(room.size(), limit)));
  if (gathered.fault) {
    return filled.pieces;  // the system call finds the piece at fault
  }
  pieces.front() = {room.data(), gathered.bytes};
  return 1;
}

Flow flow_of_error(ssize_t error) { return error == -EAGAIN ? Flow::kWait : Flow::kBroken; }

}  // namespace

void ChunkMemory::begin(const Cursor& its_cursor, Code fault) {
  cursor = its_cursor;
  fault_ = fault;
  failure_ = {};
  singly_ = false;
}

bool ChunkMemory::hold(BatchGuard& guard) {
  failure_ = guard.take(uses_);
  if (!failure_.ok()) {
    uses_.clear();
  }
  return failure_.ok();
}

bool ChunkMemory::retry_singly() {
  if (singly_) {
    failure_ = Outcome::failure(fault_, EFAULT, static_cast<std::int64_t>(cursor.index()));
    return false;
  }
  singly_ = true;
  return true;
}

void ChunkSender::begin(std::uint32_t sequence, const Cursor& cursor, Code fault,
                        const Place& place) {
  sequence_ = sequence;
  memory_.begin(cursor, fault);
  gathering_.start(place, cursor, fault);
  header_left_ = 0;
  chunk_left_ = 0;
}

void ChunkSender::stop(const Outcome& why) {
  if (memory_.ok()) {
    memory_.fail(why);
  }
}

Flow ChunkSender::failed(wire::Tags& tags) {
  if (header_left_ == header_.size()) {  // the chunk has not been announced yet
    tags.take_back();
    header_left_ = 0;
    chunk_left_ = 0;
  }
  return Flow::kGoOn;
}

void ChunkSender::open_chunk(wire::Tags& tags, std::uint64_t bytes) {
  chunk_left_ = bytes;
  header_ = wire::encode_header(
      {wire::Kind::kChunk, 0, static_cast<std::uint32_t>(chunk_left_), sequence_});
  tags.seal(header_);
  header_left_ = header_.size();
}

Flow ChunkSender::open_staged_chunk(wire::Tags& tags, BatchGuard& guard) {
  if (!memory_.ok()) {
    return Flow::kEnd;
  }
  switch (gathering_.next(guard, chunk_)) {
    case Step::kReady:
      open_chunk(tags, chunk_.size());
      return Flow::kGoOn;
    case Step::kWait:
      return Flow::kStaging;
    case Step::kFailed:
      memory_.fail(gathering_.failure());
      return Flow::kEnd;
    case Step::kEnd:
      break;
  }
  return Flow::kEnd;
}

// Like step(): the bytes of an announced chunk are there, whatever happens to their memory.
Flow ChunkSender::step_staged(LaneSocket& lane, BatchGuard& guard) {
  if (chunk_left_ == 0) {
    const Flow opened = open_staged_chunk(lane.sent, guard);
    if (opened != Flow::kGoOn) {
      return opened;
    }
  }
  std::array<iovec, 2> pieces{};
  std::size_t count = 0;
  if (header_left_ > 0) {
    pieces[count++] = {header_.data() + header_.size() - header_left_, header_left_};
  }
  // sendmsg does not change what it sends.
  auto* const rest = const_cast<std::byte*>(chunk_.last(chunk_left_).data());
  pieces[count++] = {rest, chunk_left_};
  const bool last_chunk = chunk_left_ == memory_.cursor.left();
  const ssize_t sent = send_pieces(lane.get(), std::span(pieces).first(count), last_chunk);
  if (sent < 0) {
    return flow_of_error(sent);
  }
  const std::size_t of_header = std::min(static_cast<std::size_t>(sent), header_left_);
  const std::uint64_t of_payload = static_cast<std::size_t>(sent) - of_header;
  header_left_ -= of_header;
  chunk_left_ -= of_payload;
  memory_.cursor.advance(of_payload);
  if (chunk_left_ == 0) {
    gathering_.sent();
  }
  return Flow::kGoOn;
}

Flow ChunkSender::step(LaneSocket& lane, BatchGuard& guard) {
  if (gathering_.active()) {
    return step_staged(lane, guard);
  }
  if (chunk_left_ == 0) {
    if (memory_.cursor.done() || !memory_.ok()) {
      return Flow::kEnd;
    }
    open_chunk(lane.sent, std::min<std::uint64_t>(memory_.cursor.left(), wire::kMaxChunkBytes));
  }
  if (memory_.ok() && !memory_.hold(guard)) {
    return failed(lane.sent);
  }
  Cursor& cursor = memory_.cursor;
  const std::span<iovec> pieces = piece_room();
  std::size_t count = 0;
  if (header_left_ > 0) {
    pieces[count++] = {header_.data() + header_.size() - header_left_, header_left_};
  }
  if (!memory_.ok()) {
    pieces[count++] = {zeroes().data(), std::min<std::size_t>(chunk_left_, zeroes().size())};
  } else if (!memory_.singly()) {
    count += describe(cursor, pieces.subspan(count), chunk_left_);
  } else if (count == 0) {
    count = cursor.fill(pieces.first(1), chunk_left_).pieces;
  }
  // The outcome after the last chunk should travel in one segment with its end.
  const bool last_chunk = memory_.ok() && chunk_left_ == cursor.left();
  const ssize_t sent = send_pieces(lane.get(), pieces.first(count), last_chunk);
  memory_.release();
  if (sent == -EFAULT && memory_.ok()) {
    return memory_.retry_singly() ? Flow::kGoOn : failed(lane.sent);
  }
  if (sent < 0) {
    return flow_of_error(sent);
  }
  const std::size_t of_header = std::min(static_cast<std::size_t>(sent), header_left_);
  const std::uint64_t of_payload = static_cast<std::size_t>(sent) - of_header;
  header_left_ -= of_header;
  chunk_left_ -= of_payload;
  if (memory_.ok()) {
    cursor.advance(of_payload);
  }
  return Flow::kGoOn;
}

void ChunkReceiver::begin(std::uint32_t sequence, const Cursor& cursor, Code fault, bool answer,
                          const Place& place) {
  sequence_ = sequence;
  memory_.begin(cursor, fault);
  scattering_.begin(place, cursor, fault);
  ended_ = false;
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

Flow ChunkReceiver::step(LaneSocket& lane, BatchGuard& guard) {
  if (!ended_) {
    const Flow flow = chunk_left_ > 0 ? receive_payload(lane, guard) : receive_frame(lane);
    ended_ = flow == Flow::kEnd;
    if (!ended_ || !scattering_.active()) {
      return flow;
    }
  }
  return finish_staged(guard);
}

// The outcome is there; the bytes count when they are in place.
Flow ChunkReceiver::finish_staged(BatchGuard& guard) {
  const Step step = scattering_.finish(guard);
  if (step == Step::kFailed && memory_.ok()) {
    memory_.fail(scattering_.failure());
  }
  return step == Step::kWait ? Flow::kStaging : Flow::kEnd;
}

Flow ChunkReceiver::find_room(std::span<iovec> pieces, Cursor::Filled& filled) {
  if (!scattering_.active()) {
    filled = memory_.cursor.fill(pieces, chunk_left_, !memory_.singly());
    return Flow::kGoOn;
  }
  std::span<std::byte> room;
  switch (scattering_.room(room)) {
    case Step::kReady:
      break;
    case Step::kWait:
      return Flow::kStaging;
    default:
      memory_.fail(scattering_.failure());
      return Flow::kFailed;
  }
  filled = {1, std::min<std::uint64_t>(room.size(), chunk_left_)};
  pieces[0] = {room.data(), filled.bytes};
  return Flow::kGoOn;
}

Flow ChunkReceiver::receive_payload(LaneSocket& lane, BatchGuard& guard) {
  const std::span<iovec> pieces = piece_room();
  std::size_t count = 1;
  if (memory_.ok()) {
    const bool singly = memory_.singly();
    Cursor::Filled filled;
    const Flow found = find_room(pieces.first(singly ? 1 : pieces.size() - 1), filled);
    if (found != Flow::kGoOn) {
      return found;
    }
    count = filled.pieces;
    if (!singly && filled.bytes == chunk_left_) {
      // Another chunk's header follows, or the outcome after the last chunk.
      frame_wanted_ = chunk_left_ == unread_ ? frame_.size() : wire::kHeadBytes;
      pieces[count++] = {frame_.data(), frame_wanted_};
    }
  } else {
    const auto scratch = scratch_room();
    pieces[0] = {scratch.data(), std::min<std::size_t>(chunk_left_, scratch.size())};
  }
  // Right before the system call: a process that is stopped between the two receives when it
  // continues.
  if (memory_.ok() && !scattering_.active() && !memory_.hold(guard)) {
    return Flow::kFailed;
  }
  const ssize_t got = receive_pieces(lane.get(), pieces.first(count));
  memory_.release();
  if (got == -EFAULT && memory_.ok()) {
    return memory_.retry_singly() ? Flow::kGoOn : Flow::kFailed;
  }
  if (got < 0) {
    return flow_of_error(got);
  }
  const auto all = static_cast<std::size_t>(got);
  const std::uint64_t of_payload = std::min<std::uint64_t>(all, chunk_left_);
  frame_filled_ = all - of_payload;
  chunk_left_ -= of_payload;
  unread_ -= of_payload;
  if (memory_.ok()) {
    memory_.cursor.advance(of_payload);
    if (scattering_.active()) {
      scattering_.received(of_payload, guard);
    }
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

// Parses the received part of a frame: the header as soon as it is complete, and the tag before any
// of the frame has an effect.
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
