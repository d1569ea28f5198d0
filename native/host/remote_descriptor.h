// A descriptor of another process on this host, duplicated into this one.
#pragma once

#include <functional>
#include <string>

#include "base/outcome.h"
#include "base/unique_fd.h"

namespace ldd {

// Duplicates descriptor `fd` of process `pid` (pidfd_getfd). That needs the permission to read the
// process, which the same-host path has. `prove` is asked in between whether the process is the
// expected one: its answer also holds for the process whose descriptor it is. Not ok: the outcome
// of `prove`, or kSystem with EOPNOTSUPP and a reason.
Outcome take_descriptor(int pid, int fd, const std::function<Outcome()>& prove, UniqueFd& taken,
                        std::string& problem);

}  // namespace ldd
