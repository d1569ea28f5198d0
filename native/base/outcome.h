// The result of one data-plane operation. Codes are grouped by what must be rebuilt: the request,
// the link, or the instance. _backends/outcomes.py has the same numbers; Python maps them to
// LLMStatusCode in one place, _engine/transfer/errors.py.
#pragma once

#include <cstdint>

namespace ldd {

enum class Code : std::int32_t {
  kOk = 0,
  kGone = 1,         // a remote reference is not live at the value named in the request
  kLocalGone = 2,    // the local entry is no longer live
  kTimeout = 3,      // the deadline passed
  kPeerDead = 4,     // the peer's process or its lane is gone
  kRemoteFault = 5,  // the peer's memory cannot be read or written
  kLocalFault = 6,   // local memory cannot be read or written
  kDenied = 7,       // a range outside the memory that the peer may access
  kStale = 8,        // the directory has a newer version than the one named in the request
  kClosed = 9,       // the local instance was closed
  kProtocol = 10,    // the peer sent something that the wire format forbids
  kSystem = 11,      // any other system call failure, errno in sys_errno
  kCancelled = 12,   // the link was closed during the operation
  kNoLane = 13,      // the initiator has no lane left, so nothing was sent; never on the wire
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
