// Division of a transfer into batches: every byte once, in order, within the limits.
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "copy/descriptors.h"

namespace {

using ldd::Batch;
using ldd::Descriptors;

struct Work {
  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;

  void add(std::uint64_t to, std::uint64_t from, std::uint64_t bytes) {
    local.push_back(to);
    remote.push_back(from);
    length.push_back(bytes);
  }
  [[nodiscard]] Descriptors view() const { return {local, remote, length}; }
};

void check_division(const Work& work, std::uint64_t batch_bytes, std::size_t batch_pieces) {
  iovec local[ldd::kMaxIovecs];
  iovec remote[ldd::kMaxIovecs];
  std::size_t descriptor = 0;
  std::uint64_t offset = 0;
  std::uint64_t total = 0;
  for (const Batch& batch : ldd::divide(work.view(), batch_bytes, batch_pieces)) {
    const std::size_t count = ldd::fill_iovecs(work.view(), batch, local, remote);
    CHECK(count > 0 && count <= batch_pieces && batch.bytes <= batch_bytes);
    std::uint64_t in_batch = 0;
    for (std::size_t i = 0; i < count; ++i) {
      while (offset == work.length[descriptor]) {
        ++descriptor;
        offset = 0;
      }
      CHECK(ldd::descriptor_of(work.view(), batch, i) == descriptor);
      CHECK(reinterpret_cast<std::uint64_t>(local[i].iov_base) == work.local[descriptor] + offset);
      CHECK(reinterpret_cast<std::uint64_t>(remote[i].iov_base) ==
            work.remote[descriptor] + offset);
      CHECK(local[i].iov_len == remote[i].iov_len && local[i].iov_len > 0);
      offset += local[i].iov_len;
      in_batch += local[i].iov_len;
    }
    CHECK(in_batch == batch.bytes);
    total += in_batch;
  }
  CHECK(total == ldd::measure(work.view()).bytes);
}

void check_random_divisions() {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    Work work;
    const std::size_t count = random() % 200;
    for (std::size_t i = 0; i < count; ++i) {
      work.add(random() >> 1, random() >> 1, random() % 3 == 0 ? 0 : random() % 5000);
    }
    check_division(work, 1 + random() % 20000, 1 + random() % 50);
  }
}

template <typename Call>
bool refused(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void check_refusals() {
  constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();
  Work wraps;
  wraps.add(0, kTop - 1, 3);
  CHECK(refused([&] { (void)ldd::measure(wraps.view()); }));
  Work huge;
  huge.add(0, 0, ldd::kMaxTransferBytes);
  (void)ldd::measure(huge.view());
  huge.add(0, 0, 1);
  CHECK(refused([&] { (void)ldd::measure(huge.view()); }));
  Work uneven;
  uneven.add(0, 0, 1);
  uneven.local.clear();
  CHECK(refused([&] { (void)ldd::measure(uneven.view()); }));
}

void check_that_threads_get_work() {
  const auto small = ldd::division_for({4096, 1}, 2, 1023);
  CHECK(small.single);
  const auto middle = ldd::division_for({std::uint64_t{8} << 20, 2048}, 2, 1023);
  CHECK(!middle.single && middle.batch_pieces <= 512 && middle.batch_bytes <= (2 << 20));
  const auto large = ldd::division_for({std::uint64_t{1} << 34, 16}, 2, 1023);
  CHECK(large.batch_bytes == ldd::kBatchBytes);
  const auto alone = ldd::division_for({std::uint64_t{1} << 20, 1}, 1, 1023);
  CHECK(alone.single);
  const auto many = ldd::division_for({1024, 1024}, 8, 1023);
  CHECK(!many.single && many.batch_pieces <= 1023);
}

}  // namespace

int main() {
  check_random_divisions();
  check_refusals();
  check_that_threads_get_work();
}
