// One request on a lane and its reply, from the initiator's side: a state machine driven by the
// thread that called. Only that thread touches the caller's memory.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/outcome.h"
#include "lanes/chunks.h"
#include "lanes/socket.h"
#include "wire/frames.h"

namespace ldd {

struct ClientLane {
  explicit ClientLane(int fd) : socket(adopt_lane(fd)), clocks_shared(socket.same_host()) {}

  LaneSocket socket;
  bool clocks_shared;
  std::uint32_t sequence = 0;
};

// What a request asks for; its descriptors come as words in wire order of columns.
struct Ask {
  wire::Kind kind = wire::Kind::kPing;
  wire::Request request;
  std::vector<std::uint64_t> words;
  std::size_t first_descriptor = 0;  // of the transfer that this is a part of
};

// Fills in when the request's time is over.
void set_deadline(wire::Request& request, std::int64_t deadline_ns);

class Exchange {
 public:
  // `payload` is the local memory that is read or written; `guard` is asked before it is touched.
  Exchange(ClientLane& lane, Ask ask, const Cursor& payload, BatchGuard& guard);

  // Goes on until the socket is not ready (kWait), the reply is complete (kEnd), the lane has
  // failed (kBroken, kMalformed), or so much has been done that others have their turn (kGoOn).
  Flow step();
  // Events of poll(2) to wait for after kWait.
  [[nodiscard]] short events() const;
  // After kEnd; descriptors are counted within the transfer.
  [[nodiscard]] Outcome outcome() const;
  [[nodiscard]] std::uint64_t value() const { return receiver_.reply().value; }
  // Bytes that have gone through so far.
  [[nodiscard]] std::uint64_t moved_bytes() const;
  [[nodiscard]] int fd() const { return lane_.socket.get(); }
  [[nodiscard]] const LaneSocket& socket() const { return lane_.socket; }

 private:
  enum class Phase { kRequest, kAwaitGo, kPayload, kClosing, kReply, kDone };

  Flow step_once();
  Flow send_request();
  Flow await_go();
  Flow send_payload();
  Flow send_closing();
  Flow await_reply();
  [[nodiscard]] bool inline_payload() const;
  [[nodiscard]] bool reply_plausible() const;

  ClientLane& lane_;
  Ask ask_;
  BatchGuard& guard_;
  std::uint64_t payload_bytes_;
  Phase phase_ = Phase::kRequest;
  wire::RequestFrame frame_{};
  std::size_t request_sent_ = 0;
  bool answered_ = false;  // the outcome of a write came before the payload ended
  ChunkSender sender_;
  ChunkReceiver receiver_;
  wire::OutcomeFrame closing_{};
  std::size_t closing_sent_ = 0;
};

}  // namespace ldd
