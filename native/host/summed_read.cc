// Reads that also compute the checksums of the bytes that arrived.
#include <algorithm>
#include <cerrno>
#include <vector>

#include "copy/pool.h"
#include "host/read.h"
#include "host/stretches.h"

namespace ldd {

namespace {

constexpr std::uint64_t kHotBytes = 256 * 1024;  // of a batch: within a core's second-level cache

}  // namespace

Outcome HostRead::move_and_sum_all() const {
  prepare_guarded_copies();
  std::fill(sums_.begin(), sums_.end(), 0);
  CopyPool& pool = CopyPool::instance();
  const std::vector<Run> runs = divide_whole(work_.length, pool.threads());
  if (runs.size() == 1) {
    return move_and_sum(runs.front());
  }
  return pool.run(runs.size(), [&](std::size_t i) { return move_and_sum(runs[i]); });
}

Outcome HostRead::move_and_sum(const Run& run) const {
  const std::size_t count = run.end - run.first;
  const Descriptors own{work_.local.subspan(run.first, count),
                        work_.remote.subspan(run.first, count),
                        work_.length.subspan(run.first, count)};
  std::uint64_t moved_bytes = 0;
  for (Batch each : divide(own, kHotBytes, kDataIovecs)) {
    each.first += run.first;
    Outcome outcome = batch(each);
    moved_bytes += outcome.moved_bytes;
    if (!outcome.ok()) {
      outcome.moved_bytes = moved_bytes;
      return outcome;
    }
  }
  return {Code::kOk, 0, -1, moved_bytes};
}

Outcome HostRead::sum(const Batch& batch, const Outcome& moved) const {
  std::uint64_t left = batch.bytes;
  std::uint64_t offset = batch.offset;
  for (std::size_t i = batch.first; left != 0; ++i, offset = 0) {
    const std::uint64_t size = std::min(work_.length[i] - offset, left);
    const void* arrived = reinterpret_cast<const void*>(work_.local[i] + offset);
    if (!guarded_checksum(arrived, size, sums_[i])) {
      return Outcome::failure(Code::kLocalFault, EFAULT, static_cast<std::int64_t>(i));
    }
    left -= size;
  }
  return moved;
}

CopyFault HostRead::copy_and_sum(const Batch& batch, const iovec* local, const iovec* remote,
                                 std::size_t count) const {
  std::size_t descriptor = batch.first;
  for (std::size_t i = 0; i < count; ++i, ++descriptor) {
    while (work_.length[descriptor] == 0) {
      ++descriptor;
    }
    const CopyFault fault =
        guarded_copy_and_checksum(local[i], remote[i], kind_, sums_[descriptor]);
    if (!fault.none()) {
      return {fault.side, i};
    }
  }
  return {};
}

}  // namespace ldd
