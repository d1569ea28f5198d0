// Which replies a request may get: what no target can have met it must not say.
#pragma once

#include <cstdint>

#include "wire/frames.h"

namespace ldd {

// What the initiator knows when an outcome has come.
struct Expected {
  std::uint32_t descriptors = 0;
  std::uint64_t bytes = 0;       // that a complete transfer moves, or a complete answer has
  std::uint64_t unread = 0;      // of these, when the bytes come as chunks, what has not come
  Code own_failure = Code::kOk;  // with which the initiator has ended a WRITE's payload
  bool early = false;            // it came before the payload of a WRITE had ended
};

// Whether a target that keeps to the wire format may end a request of this kind so.
[[nodiscard]] bool may_answer(wire::Kind kind, const wire::Reply& reply, const Expected& expected);

// Whether an initiator may end the payload of its WRITE with this code.
[[nodiscard]] bool may_end_payload(Code code);

}  // namespace ldd
