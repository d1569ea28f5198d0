// Payload in chunks between a socket and scattered memory, the same in both directions and on both
// sides: a chunk is a header that announces its bytes, then the bytes; an outcome ends the stream.
// An announced chunk is always completed (the sender sends zeroes after a failure, the receiver
// discards bytes), so that a lane stays usable whatever happens to the memory. Bytes of a GPU pass
// through pinned memory (staged.h): a chunk is announced when its bytes are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/cursor.h"
#include "lanes/socket.h"
#include "lanes/staged.h"
#include "memory/entries.h"
#include "wire/frames.h"

namespace ldd {

enum class Flow {
  kGoOn,
  kWait,       // the socket is not ready
  kStaging,    // a copy of a GPU's memory has not ended; the staging's wake will be called
  kBroken,     // the other end or the connection is gone
  kMalformed,  // the other end broke the protocol
  kForged,     // a frame was not sent by the other end: its tag does not match
  kFailed,     // receiver, once: access to memory failed; the remaining payload is discarded
  kGo,         // receiver: a GO was received
  kEnd,        // sender: everything announced is sent; receiver: the outcome was received
};

// The memory that chunks come from or go to: a position, and the first failure of either side.
class ChunkMemory {
 public:
  // `fault` is the code for memory that cannot be accessed.
  void begin(const Cursor& cursor, Code fault);
  // Before a system call that accesses it. False: it has failed now.
  bool hold(BatchGuard& guard);
  void release() { uses_.clear(); }
  // After a call that met inaccessible memory. True: repeat it, with one piece per call, to find
  // the piece at fault. False: it has failed now.
  bool retry_singly();
  void fail(const Outcome& why) { failure_ = why; }

  Cursor cursor;
  [[nodiscard]] const Outcome& failure() const { return failure_; }
  [[nodiscard]] bool ok() const { return failure_.ok(); }
  [[nodiscard]] bool singly() const { return singly_; }

 private:
  Code fault_ = Code::kSystem;
  Outcome failure_;
  bool singly_ = false;
  std::vector<Use> uses_;
};

class ChunkSender {
 public:
  void begin(std::uint32_t sequence, const Cursor& cursor, Code fault, const Place& place = {});
  // Begins what can be done before the first step.
  void prepare(BatchGuard& guard) { gathering_.ahead(guard); }
  Flow step(LaneSocket& lane, BatchGuard& guard);
  // Announces no further chunks.
  void stop(const Outcome& why);

  [[nodiscard]] bool between_chunks() const { return chunk_left_ == 0; }
  [[nodiscard]] const Outcome& failure() const { return memory_.failure(); }
  [[nodiscard]] std::uint64_t left() const { return memory_.cursor.left(); }

 private:
  void open_chunk(wire::Tags& tags, std::uint64_t bytes);
  Flow failed(wire::Tags& tags);
  Flow open_staged_chunk(wire::Tags& tags, BatchGuard& guard);
  Flow step_staged(LaneSocket& lane, BatchGuard& guard);

  std::uint32_t sequence_ = 0;
  ChunkMemory memory_;
  Gathering gathering_;
  std::span<const std::byte> chunk_;  // of gathered bytes
  wire::Head header_{};
  std::size_t header_left_ = 0;
  std::uint64_t chunk_left_ = 0;
};

class ChunkReceiver {
 public:
  // An `answer` must be in one piece; the outcome's tag covers it.
  void begin(std::uint32_t sequence, const Cursor& cursor, Code fault, bool answer = false,
             const Place& place = {});
  Flow step(LaneSocket& lane, BatchGuard& guard);
  // Discards the remaining payload.
  void stop(const Outcome& why) { memory_.fail(why); }

  [[nodiscard]] const wire::Reply& reply() const { return reply_; }  // after kEnd
  // Payload that was not sent. Must be 0 after an ok outcome, except at the end of a log.
  [[nodiscard]] std::uint64_t unread() const { return unread_; }
  [[nodiscard]] const Outcome& failure() const { return memory_.failure(); }
  [[nodiscard]] std::uint64_t left() const { return memory_.cursor.left(); }

 private:
  Flow receive_payload(LaneSocket& lane, BatchGuard& guard);
  // Adds where to receive payload, and how many bytes at most.
  Flow find_room(std::span<iovec> pieces, Cursor::Filled& filled);
  Flow finish_staged(BatchGuard& guard);
  Flow receive_frame(LaneSocket& lane);
  Flow parse_frame(wire::Tags& tags);
  Flow take_outcome();
  [[nodiscard]] std::span<const std::byte> answer_so_far() const;

  std::uint32_t sequence_ = 0;
  ChunkMemory memory_;
  Scattering scattering_;
  bool ended_ = false;  // the outcome was received
  wire::Reply reply_;
  wire::OutcomeFrame frame_{};
  std::size_t frame_filled_ = 0;
  std::size_t frame_wanted_ = wire::kHeadBytes;
  std::uint64_t chunk_left_ = 0;
  std::span<const std::byte> answer_;
  std::uint64_t unread_ = 0;  // payload that is announced or may still be
};

}  // namespace ldd
