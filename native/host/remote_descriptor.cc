#include "host/remote_descriptor.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace ldd {

namespace {

// The numbers are the same on all architectures; headers of a C library may lack their names.
constexpr long kPidfdOpen = 434;
constexpr long kPidfdGetfd = 438;

Outcome refused(const char* call, std::string& problem) {
  const int reason = errno;
  problem = std::string(call) + " failed (" + std::generic_category().message(reason) + ")";
  if (reason == EPERM) {
    problem += ": containers need the capability SYS_PTRACE for it";
  } else if (reason == ENOSYS) {
    problem += ": it needs Linux 5.6";
  }
  return Outcome::failure(Code::kSystem, EOPNOTSUPP);
}

}  // namespace

Outcome take_descriptor(int pid, int fd, const std::function<Outcome()>& prove, UniqueFd& taken,
                        std::string& problem) {
  const UniqueFd process(static_cast<int>(::syscall(kPidfdOpen, pid, 0)));
  if (!process.valid()) {
    return refused("pidfd_open", problem);
  }
  // The peer has had this pid since the link was made. If it has it still, it is what was opened.
  const Outcome proved = prove();
  if (!proved.ok()) {
    problem = "the peer's process does not show the proof of this link";
    return proved;
  }
  taken.reset(static_cast<int>(::syscall(kPidfdGetfd, process.get(), fd, 0)));
  return taken.valid() ? Outcome{} : refused("pidfd_getfd", problem);
}

}  // namespace ldd
