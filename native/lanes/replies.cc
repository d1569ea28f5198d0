#include "lanes/replies.h"

#include <initializer_list>

namespace ldd {

namespace {

constexpr std::int32_t kMostErrno = 4095;

class Codes {
 public:
  constexpr Codes(std::initializer_list<Code> codes) {
    for (const Code code : codes) {
      bits_ |= bit(code);
    }
  }
  [[nodiscard]] constexpr bool has(Code code) const { return (bits_ & bit(code)) != 0; }

 private:
  static constexpr std::uint32_t bit(Code code) { return 1U << static_cast<std::uint32_t>(code); }
  std::uint32_t bits_ = 0;
};

// kLocal... means the initiator's memory, which a target accesses only for a PUSH.
constexpr Codes kOnlyOk{Code::kOk};
constexpr Codes kOfConsume{Code::kOk, Code::kGone, Code::kTimeout};
constexpr Codes kOfTransfer{Code::kOk,     Code::kGone,  Code::kTimeout, Code::kRemoteFault,
                            Code::kDenied, Code::kStale, Code::kSystem};
constexpr Codes kOfJob{Code::kOk,     Code::kGone,  Code::kTimeout, Code::kRemoteFault,
                       Code::kDenied, Code::kStale, Code::kSystem,  Code::kCancelled};
constexpr Codes kOfPush{Code::kOk,         Code::kGone,      Code::kTimeout, Code::kRemoteFault,
                        Code::kDenied,     Code::kStale,     Code::kSystem,  Code::kCancelled,
                        Code::kLocalFault, Code::kLocalGone, Code::kPeerDead};
constexpr Codes kNamesDescriptor{Code::kDenied, Code::kRemoteFault, Code::kLocalFault,
                                 Code::kSystem};

const Codes& codes_of(wire::Kind kind) {
  switch (kind) {
    case wire::Kind::kRead:
    case wire::Kind::kWrite:
    case wire::Kind::kGather:
      return kOfTransfer;
    case wire::Kind::kPush:
      return kOfPush;
    case wire::Kind::kChecksum:
    case wire::Kind::kProbe:
      return kOfJob;
    case wire::Kind::kConsume:
      return kOfConsume;
    default:
      return kOnlyOk;
  }
}

bool index_plausible(const Outcome& outcome, std::uint32_t descriptors) {
  const bool inside = outcome.index >= 0 && outcome.index < static_cast<std::int64_t>(descriptors);
  return outcome.index == -1 || (inside && kNamesDescriptor.has(outcome.code));
}

bool bytes_plausible(wire::Kind kind, const Outcome& outcome, const Expected& expected) {
  const std::uint64_t received = expected.bytes - expected.unread;
  switch (kind) {
    case wire::Kind::kRead:
      return outcome.moved_bytes <= expected.bytes &&
             (!outcome.ok() || (received == expected.bytes && outcome.moved_bytes == received));
    case wire::Kind::kWrite:
    case wire::Kind::kPush:
      return outcome.ok() ? outcome.moved_bytes == expected.bytes
                          : outcome.moved_bytes <= expected.bytes;
    case wire::Kind::kReadLog:
      return outcome.moved_bytes == received;
    case wire::Kind::kChecksum:
    case wire::Kind::kGather:
      return outcome.moved_bytes == 0 && received == (outcome.ok() ? expected.bytes : 0);
    default:
      return outcome.moved_bytes == 0;
  }
}

}  // namespace

bool may_answer(wire::Kind kind, const wire::Reply& reply, const Expected& expected) {
  const Outcome& outcome = reply.outcome;
  const bool initiator_failed = expected.own_failure != Code::kOk;
  const bool repeats = initiator_failed && !expected.early && outcome.code == expected.own_failure;
  if (!repeats && !codes_of(kind).has(outcome.code)) {
    return false;
  }
  if (outcome.ok() && (expected.early || initiator_failed || outcome.sys_errno != 0)) {
    return false;
  }
  const bool has_clock = kind != wire::Kind::kDirectoryVersion;
  return outcome.sys_errno >= 0 && outcome.sys_errno <= kMostErrno &&
         (!has_clock || reply.value <= wire::kMaxRemainingNs) &&
         index_plausible(outcome, expected.descriptors) && bytes_plausible(kind, outcome, expected);
}

bool may_end_payload(Code code) {
  return code == Code::kOk || code == Code::kLocalGone || code == Code::kLocalFault;
}

}  // namespace ldd
