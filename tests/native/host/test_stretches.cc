// What one system call reads of a peer: neighbors are joined, and what lies between two of them is
// read only where it is short and inside one registered range.
#include <cstdint>
#include <memory>
#include <vector>

#include "check.h"
#include "host/stretches.h"

namespace {

using ldd::kDataIovecs;
using ldd::kGapBytes;
using ldd::Range;
using ldd::Stretches;

constexpr std::uint64_t kBegin = 0x10000;

iovec range(std::uint64_t begin, std::uint64_t length) {
  return {reinterpret_cast<void*>(begin), length};
}

std::uint64_t begin_of(const iovec& range) {
  return reinterpret_cast<std::uint64_t>(range.iov_base);
}

struct Read {
  std::size_t num_local = 0;
  std::size_t num_remote = 0;
  std::uint64_t gap_bytes = 0;
};

// Joins ranges of 64 bytes that begin at the given places; both sides must have as many bytes.
Read join(const std::vector<std::uint64_t>& begins, const std::vector<Range>& registered) {
  std::vector<iovec> local;
  std::vector<iovec> remote;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    local.push_back(range(0x900000 + 4096 * i, 64));
    remote.push_back(range(begins[i], 64));
  }
  const auto made = std::make_unique<Stretches>();
  made->join(local.data(), remote.data(), remote.size(), registered);
  std::uint64_t local_bytes = 0;
  std::uint64_t remote_bytes = 0;
  std::size_t own = 0;
  for (const iovec& each : made->local()) {
    local_bytes += each.iov_len;
    own += own < local.size() && each.iov_base == local[own].iov_base ? 1 : 0;
  }
  for (const iovec& each : made->remote()) {
    remote_bytes += each.iov_len;
  }
  CHECK(own == local.size() && local_bytes == remote_bytes);
  CHECK(local_bytes == 64 * begins.size() + made->gap_bytes());
  const Read read{made->local().size(), made->remote().size(), made->gap_bytes()};
  made->add(range(1, 16), range(2, 16));
  CHECK(made->local().size() == read.num_local + 1 && begin_of(made->remote().back()) == 2);
  return read;
}

void check_adjacent_ranges() {
  const Read read = join({kBegin, kBegin + 64, kBegin + 128}, {});
  CHECK(read.num_remote == 1 && read.num_local == 3 && read.gap_bytes == 0);
}

void check_gaps() {
  const Range all{kBegin, kBegin + 0x10000};
  const std::uint64_t next = kBegin + 64;
  CHECK(join({kBegin, next + 100}, {all}).gap_bytes == 100);
  CHECK(join({kBegin, next + kGapBytes}, {all}).num_remote == 1);
  CHECK(join({kBegin, next + kGapBytes + 1}, {all}).num_remote == 2);
  CHECK(join({next, kBegin}, {all}).num_remote == 2);  // backward
}

void check_gaps_outside_of_registered_ranges() {
  const std::uint64_t next = kBegin + 64;
  const std::vector<std::uint64_t> two{kBegin, next + 100};
  const std::vector<std::vector<Range>> outside = {
      {},
      {{kBegin, next}, {next + 100, next + 200}},
      {{kBegin, next + 99}, {next + 100, next + 200}},
      {{kBegin, next}, {next + 1, next + 200}},
      {{kBegin + 0x10000, kBegin + 0x20000}},
      {{0, 64}},
  };
  for (const std::vector<Range>& registered : outside) {
    const Read read = join(two, registered);
    CHECK(read.num_remote == 2 && read.gap_bytes == 0);
  }
  const std::vector<Range> inside{{0, 64}, {kBegin, next + 200}, {next + 300, next + 500}};
  CHECK(join(two, inside).num_remote == 1);
  const Read read = join({kBegin, next + 100, next + 364, next + 436}, inside);
  CHECK(read.num_remote == 2 && read.gap_bytes == 108);  // of the first range, and of the last
}

void check_room() {
  std::vector<std::uint64_t> begins;
  for (std::size_t i = 0; i < kDataIovecs - 10; ++i) {
    begins.push_back(kBegin + 65 * i);
  }
  const Read read = join(begins, {{kBegin, kBegin + 0x100000}});
  CHECK(read.gap_bytes == 10 && read.num_local == kDataIovecs);
  CHECK(read.num_remote == begins.size() - 10);
}

}  // namespace

int main() {
  check_adjacent_ranges();
  check_gaps();
  check_gaps_outside_of_registered_ranges();
  check_room();
  return 0;
}
