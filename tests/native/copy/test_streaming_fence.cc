// Streaming stores are complete when a copy returns, also when a fault has ended it. A store that
// is not complete shows by chance only, so this program has stand-ins for copy/streaming.cc that
// count.
#include <cstring>

#include "check.h"
#include "copy/crc32c.h"
#include "copy/guarded_copy.h"
#include "copy/streaming.h"

namespace {

int copies = 0;
int fences_after_copies = 0;

}  // namespace

namespace ldd {

void streaming_copy(void* destination, const void* source, std::size_t size_bytes) {
  ++copies;
  fences_after_copies = 0;
  std::memcpy(destination, source, size_bytes);
}

void finish_streaming() { ++fences_after_copies; }

}  // namespace ldd

namespace {

using ldd::CopyKind;
using ldd_test::kPage;
using ldd_test::Pages;

constexpr std::size_t kCount = 8;

void check_copies(const Pages& to, const Pages& from, bool faults) {
  iovec source[kCount];
  iovec destination[kCount];
  for (std::size_t i = 0; i < kCount; ++i) {
    source[i] = {from.data() + i * kPage, kPage};
    destination[i] = {to.data() + i * kPage, kPage};
  }
  copies = 0;
  CHECK(ldd::guarded_copy(destination, source, kCount, CopyKind::kStreaming).none() != faults);
  CHECK(copies > 0);
  CHECK(fences_after_copies > 0);
}

void check_copies_with_checksums(const Pages& to, const Pages& from, bool faults) {
  const iovec source{from.data(), from.size_bytes()};
  const iovec destination{to.data(), to.size_bytes()};
  std::uint32_t sum = 0;
  fences_after_copies = 0;
  const auto fault = ldd::guarded_copy_and_checksum(destination, source, CopyKind::kStreaming, sum);
  CHECK(fault.none() != faults);
  CHECK(fences_after_copies > 0);
}

}  // namespace

int main() {
  ldd::prepare_guarded_copies();
  const Pages from(kCount);
  const Pages to(kCount);
  check_copies(to, from, false);
  check_copies_with_checksums(to, from, false);
  for (const Pages* side : {&from, &to}) {
    side->protect(5, PROT_NONE);
    check_copies(to, from, true);
    check_copies_with_checksums(to, from, true);
    side->protect(5, PROT_READ | PROT_WRITE);
  }
}
