// A descriptor is taken from the process that proves to be the expected one, and from no other.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "check.h"
#include "host/remote_descriptor.h"

namespace {

using ldd::Code;
using ldd::Outcome;
using ldd::take_descriptor;
using ldd::UniqueFd;

ino_t inode_of(int fd) {
  struct stat status{};
  CHECK(::fstat(fd, &status) == 0);
  return status.st_ino;
}

void test_a_duplicate_of_the_descriptor(int fd) {
  UniqueFd taken;
  std::string problem;
  const Outcome outcome = take_descriptor(::getpid(), fd, [] { return Outcome{}; }, taken, problem);
  CHECK(outcome.ok() && problem.empty());
  CHECK(taken.get() != fd && inode_of(taken.get()) == inode_of(fd));
}

void test_nothing_is_taken_from_another_process(int fd) {
  UniqueFd taken;
  std::string problem;
  const auto other = [] { return Outcome::failure(Code::kPeerDead); };
  CHECK(take_descriptor(::getpid(), fd, other, taken, problem).code == Code::kPeerDead);
  CHECK(!taken.valid() && problem.find("proof") != std::string::npos);
}

void test_the_system_s_reason_is_named() {
  UniqueFd taken;
  std::string problem;
  const auto same = [] { return Outcome{}; };
  const Outcome closed = take_descriptor(::getpid(), 1 << 20, same, taken, problem);
  CHECK(closed.code == Code::kSystem && closed.sys_errno == EOPNOTSUPP);
  CHECK(problem.find("pidfd_getfd failed (Bad file descriptor)") != std::string::npos);
  const Outcome nobody = take_descriptor(1 << 30, 0, same, taken, problem);
  CHECK(nobody.code == Code::kSystem && problem.find("pidfd_open") != std::string::npos);
  CHECK(!taken.valid());
}

}  // namespace

int main() {
  const UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  CHECK(fd.valid());
  test_a_duplicate_of_the_descriptor(fd.get());
  test_nothing_is_taken_from_another_process(fd.get());
  test_the_system_s_reason_is_named();
  return 0;
}
