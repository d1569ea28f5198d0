// The result of one data-plane operation. Codes are grouped by what has to be rebuilt: the request,
// the link, or the instance. Python maps them to LLMStatusCode in one place
// (_backends/outcomes.py).
#pragma once

#include <cstdint>

namespace ldd {

enum class Code : std::int32_t {
  kOk = 0,
  kGone = 1,         // a remote reference is not live at the value that the request named
  kLocalGone = 2,    // the local entry is not live any more
  kTimeout = 3,      // the deadline passed
  kPeerDead = 4,     // the peer's process or its lane is gone
  kRemoteFault = 5,  // the peer's memory cannot be read or written
  kLocalFault = 6,   // own memory cannot be read or written
  kDenied = 7,       // a range outside what the peer may touch
  kStale = 8,        // the directory has moved on from the version that the request named
  kClosed = 9,       // the own instance was closed
  kProtocol = 10,    // the peer sent something that the wire format does not allow
  kSystem = 11,      // any other system call failure, errno in sys_errno
  kCancelled = 12,   // the link was closed during the operation
  kNoLane = 13,      // the initiator has no lane left, so nothing was asked; never on the wire
};

struct [[nodiscard]] Outcome {
  Code code = Code::kOk;
  std::int32_t sys_errno = 0;
  std::int64_t index = -1;  // descriptor at fault, or -1
  std::uint64_t moved_bytes = 0;

  [[nodiscard]] bool ok() const { return code == Code::kOk; }
  static Outcome failure(Code why, int error_number = 0, std::int64_t at = -1) {
    return Outcome{why, error_number, at, 0};
  }
};

}  // namespace ldd
