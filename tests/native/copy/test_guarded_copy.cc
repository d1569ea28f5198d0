// Faults inside copies end the copy, on every thread and at once; faults elsewhere end the process.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "base/clock.h"
#include "check.h"
#include "copy/crc32c.h"
#include "copy/guarded_copy.h"
#include "copy/local_copy.h"
#include "copy/pool.h"

namespace {

using ldd::Code;
using ldd::CopyFault;
using ldd::CopyKind;
using ldd::FaultSide;
using ldd_test::kPage;
using ldd_test::Pages;

void check_sides_and_pieces(CopyKind kind) {
  const Pages from(8);
  const Pages to(8);
  iovec source[8];
  iovec destination[8];
  for (std::size_t i = 0; i < 8; ++i) {
    source[i] = {from.data() + i * kPage, kPage};
    destination[i] = {to.data() + i * kPage, kPage};
  }
  std::memset(from.data(), 1, from.size_bytes());
  CHECK(ldd::guarded_copy(destination, source, 8, kind).none());
  CHECK(std::memcmp(from.data(), to.data(), from.size_bytes()) == 0);
  for (std::size_t bad = 0; bad < 8; ++bad) {
    from.protect(bad, PROT_NONE);
    CopyFault fault = ldd::guarded_copy(destination, source, 8, kind);
    CHECK(fault.side == FaultSide::kSource && fault.piece == bad);
    from.protect(bad, PROT_READ | PROT_WRITE);
    to.protect(bad, PROT_READ);
    fault = ldd::guarded_copy(destination, source, 8, kind);
    CHECK(fault.side == FaultSide::kDestination && fault.piece == bad);
    to.protect(bad, PROT_READ | PROT_WRITE);
  }
}

void check_sides_with_checksums(CopyKind kind) {
  const Pages from(8);
  const Pages to(8);
  std::memset(from.data(), 1, from.size_bytes());
  const iovec source{from.data(), from.size_bytes()};
  const iovec destination{to.data(), to.size_bytes()};
  const auto copy = [&](std::uint32_t& sum) {
    return ldd::guarded_copy_and_checksum(destination, source, kind, sum);
  };
  std::uint32_t right = 0;
  CHECK(copy(right).none());
  CHECK(right == ldd::crc32c({to.data(), to.size_bytes()}));
  for (std::size_t bad = 0; bad < 8; ++bad) {
    std::uint32_t sum = 7;
    from.protect(bad, PROT_NONE);
    CHECK(copy(sum).side == FaultSide::kSource && sum == 7);
    from.protect(bad, PROT_READ | PROT_WRITE);
    to.protect(bad, PROT_READ);
    CHECK(copy(sum).side == FaultSide::kDestination && sum == 7);
    to.protect(bad, PROT_READ | PROT_WRITE);
  }
}

void check_a_truncated_file() {
  const int fd = ::memfd_create("test", MFD_CLOEXEC);
  CHECK(fd >= 0 && ::ftruncate(fd, 2 * kPage) == 0);
  void* mapped = ::mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, fd, 0);
  CHECK(mapped != MAP_FAILED && ::ftruncate(fd, kPage) == 0);
  const Pages to(2);
  const iovec source{mapped, 2 * kPage};
  const iovec destination{to.data(), 2 * kPage};
  CHECK(ldd::guarded_copy(&destination, &source, 1, CopyKind::kCached).side == FaultSide::kSource);
  ::munmap(mapped, 2 * kPage);
  ::close(fd);
}

void check_faults_in_the_pool() {
  constexpr std::size_t kCount = 4096;
  const Pages from(kCount);
  std::vector<std::uint64_t> source(kCount);
  std::vector<std::uint64_t> length(kCount, kPage);
  for (std::size_t i = 0; i < kCount; ++i) {
    source[i] = from.address() + i * kPage;
  }
  from.protect(1234, PROT_NONE);
  ldd_test::on_threads(3, [&](std::size_t) {
    const Pages to(kCount);
    std::vector<std::uint64_t> destination(kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      destination[i] = to.address() + i * kPage;
    }
    for (int round = 0; round < 5; ++round) {
      const ldd::Outcome outcome = ldd::copy_batches(
          {destination, source, length}, {nullptr, {}, {}, ldd::now_ns() + 60'000'000'000});
      CHECK(outcome.code == Code::kRemoteFault && outcome.index == 1234);
    }
  });
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void check_a_fault_elsewhere_is_deadly() {
  const pid_t child = ::fork();
  if (child == 0) {
    const Pages memory(1);
    memory.protect(0, PROT_NONE);
    *static_cast<volatile char*>(static_cast<void*>(memory.data())) = 1;
    ::_exit(0);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}
#else
void check_a_fault_elsewhere_is_deadly() {}  // the sanitizer's handler ends it its own way
#endif

}  // namespace

int main() {
  ldd::prepare_guarded_copies();
  check_sides_and_pieces(CopyKind::kCached);
  check_sides_and_pieces(CopyKind::kStreaming);
  check_sides_with_checksums(CopyKind::kCached);
  check_sides_with_checksums(CopyKind::kStreaming);
  check_a_truncated_file();
  ldd::CopyPool::instance().set_threads(3);
  check_faults_in_the_pool();
  check_a_fault_elsewhere_is_deadly();
  ldd::CopyPool::instance().set_threads(1);
}
