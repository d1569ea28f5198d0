// One request on a lane and its reply, on the initiator's side: a state machine, driven by the
// calling thread. Only that thread accesses the caller's memory.
#pragma once

#include <poll.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/outcome.h"
#include "lanes/chunks.h"
#include "lanes/initiator/target_clock.h"
#include "lanes/socket.h"
#include "wire/frames.h"

namespace ldd {

struct ClientLane {
  explicit ClientLane(LaneSocket its_socket)
      : socket(std::move(its_socket)),
        clock(std::make_shared<TargetClock>(socket.clock_offset_ns())) {}

  // Pinned memory for a GPU's bytes, made at first use. Without a descriptor it has no slots.
  Staging& staging();
  // Readable when a copy of it has ended; -1 before the first use.
  [[nodiscard]] int staging_fd() const { return woken == nullptr ? -1 : woken->get(); }

  LaneSocket socket;
  std::shared_ptr<TargetClock> clock;  // shared by the lanes that lead to one target
  std::uint32_t sequence = 0;
  std::shared_ptr<LaneFd> woken;
  std::unique_ptr<Staging> staged;
};

// A request to be sent. Its descriptors are words, column by column as on the wire.
struct LaneRequest {
  wire::Kind kind = wire::Kind::kPing;
  wire::Request fixed;
  std::vector<std::uint64_t> words;
  std::size_t first_descriptor = 0;  // its first one within the operation
  std::int64_t deadline_ns = 0;      // sets the deadline fields of `fixed`
};

class Exchange {
 public:
  // `payload` is the local memory to read or write, of the GPU `device` or of the host; `guard` is
  // checked before each access.
  Exchange(ClientLane& lane, LaneRequest request, const Cursor& payload, BatchGuard& guard,
           int device = kHostMemory);

  // Proceeds until the socket is not ready (kWait) or a copy has not ended (kStaging), the reply is
  // complete (kEnd), the lane has failed (kBroken, kMalformed, kForged), or enough was done for one
  // turn (kGoOn).
  Flow step();
  // What poll(2) must wait for after kWait and kStaging.
  [[nodiscard]] pollfd awaited() const;
  // After kEnd; descriptors are counted within the transfer.
  [[nodiscard]] Outcome outcome() const;
  [[nodiscard]] std::uint64_t value() const { return receiver_.reply().value; }
  // Bytes that have gone through so far.
  [[nodiscard]] std::uint64_t moved_bytes() const;
  // Stops copies of a GPU's memory, for an exchange that is given up: no further one begins.
  void stop_copies();
  // Waits until none of them can change local memory, at the latest until then.
  void drain_copies(std::int64_t until_ns) const;
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
  [[nodiscard]] Place place(int device);
  void set_deadline();
  [[nodiscard]] Code closing_code() const;
  // kEnd if the reply received is permitted for this request, else kMalformed.
  Flow judge(bool early);
  [[nodiscard]] std::uint64_t requested_bytes() const;

  ClientLane& lane_;
  LaneRequest request_;
  BatchGuard& guard_;
  std::uint64_t payload_bytes_;
  std::int64_t asked_ns_ = 0;
  Phase phase_ = Phase::kRequest;
  wire::RequestFrame frame_{};
  bool sealed_ = false;
  bool staging_ = false;  // the last step has ended with kStaging
  std::size_t request_sent_ = 0;
  bool answered_ = false;  // the outcome of a write came before the payload ended
  ChunkSender sender_;
  ChunkReceiver receiver_;
  wire::OutcomeFrame closing_{};
  std::size_t closing_sent_ = 0;
};

}  // namespace ldd
