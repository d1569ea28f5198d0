// Payload in chunks between a socket and scattered memory, the same in both directions and on both
// sides: a chunk is a header that announces its bytes, then the bytes; an outcome ends the stream.
// A chunk that has been announced is always completed (with zeroes once the sender has failed, into
// nowhere once the receiver has), so that a lane stays usable whatever happens to the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/cursor.h"
#include "lanes/socket.h"
#include "memory/entries.h"
#include "wire/frames.h"

namespace ldd {

// What must hold while bytes move; asked for each system call.
class BatchGuard {
 public:
  virtual ~BatchGuard() = default;
  // Adds what has to be held during the call; not ok: no byte may move any more.
  virtual Outcome take(std::vector<Use>& uses) = 0;
};

enum class Flow {
  kGoOn,
  kWait,       // the socket is not ready
  kBroken,     // the other end or the connection is gone
  kMalformed,  // the other end sent what it must not
  kForged,     // what came is not by the other end, as far as can be seen
  kFailed,     // receiver, once: the memory side failed; what is still to come will be dropped
  kGo,         // receiver: a GO has come
  kEnd,        // sender: everything announced is sent; receiver: the outcome has come
};

class ChunkSender {
 public:
  // `fault` is the code of unreadable memory.
  void begin(std::uint32_t sequence, const Cursor& cursor, Code fault);
  Flow step(LaneSocket& lane, BatchGuard& guard);
  // Announce no more.
  void stop(const Outcome& why);

  [[nodiscard]] bool between_chunks() const { return chunk_left_ == 0; }
  [[nodiscard]] const Outcome& failure() const { return failure_; }
  [[nodiscard]] std::uint64_t left() const { return cursor_.left(); }

 private:
  void open_chunk(wire::Tags& tags);
  Flow fail(const Outcome& why, wire::Tags& tags);

  std::uint32_t sequence_ = 0;
  Cursor cursor_;
  Code fault_ = Code::kSystem;
  Outcome failure_;
  bool careful_ = false;  // one piece per call, to find the one at fault
  wire::Head header_{};
  std::size_t header_left_ = 0;
  std::uint64_t chunk_left_ = 0;
  std::vector<Use> uses_;
};

class ChunkReceiver {
 public:
  // An `answer` is in one piece, and the outcome's tag covers it.
  void begin(std::uint32_t sequence, const Cursor& cursor, Code fault, bool answer = false);
  Flow step(LaneSocket& lane, BatchGuard& guard);
  // Drop what is still to come.
  void stop(const Outcome& why) { failure_ = why; }

  [[nodiscard]] const wire::Reply& reply() const { return reply_; }  // after kEnd
  // Payload that was not sent: an ok outcome with some is malformed, except for a log's end.
  [[nodiscard]] std::uint64_t unread() const { return unread_; }
  [[nodiscard]] const Outcome& failure() const { return failure_; }
  [[nodiscard]] std::uint64_t left() const { return cursor_.left(); }

 private:
  Flow receive_payload(LaneSocket& lane, BatchGuard& guard);
  Flow receive_frame(LaneSocket& lane);
  Flow parse_frame(wire::Tags& tags);
  Flow take_outcome();
  [[nodiscard]] std::span<const std::byte> answer_so_far() const;
  Flow fail(const Outcome& why);

  std::uint32_t sequence_ = 0;
  Cursor cursor_;
  Code fault_ = Code::kSystem;
  Outcome failure_;
  bool careful_ = false;
  wire::Reply reply_;
  wire::OutcomeFrame frame_{};
  std::size_t frame_filled_ = 0;
  std::size_t frame_wanted_ = wire::kHeadBytes;
  std::uint64_t chunk_left_ = 0;
  std::span<const std::byte> answer_;
  std::uint64_t unread_ = 0;  // payload that may still be announced or is
  std::vector<Use> uses_;
};

}  // namespace ldd
