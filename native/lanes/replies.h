// Which replies a request may get. A reply that no correct target sends is a protocol error.
#pragma once

#include <cstdint>

#include "wire/frames.h"

namespace ldd {

// What the initiator knows when an outcome was received.
struct Expected {
  std::uint32_t descriptors = 0;
  std::uint64_t bytes = 0;       // of a complete transfer or answer
  std::uint64_t unread = 0;      // those of them not received, if they are sent as chunks
  Code own_failure = Code::kOk;  // with which the initiator ended a WRITE's payload
  bool early = false;            // it was received before the payload of a WRITE had ended
};

// Whether a target that follows the protocol may end a request of this kind with `reply`.
[[nodiscard]] bool may_answer(wire::Kind kind, const wire::Reply& reply, const Expected& expected);

// Whether an initiator may end the payload of its WRITE with this code.
[[nodiscard]] bool may_end_payload(Code code);

}  // namespace ldd
