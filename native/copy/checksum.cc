#include "copy/checksum.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "copy/descriptors.h"
#include "copy/gpu_checksum.h"
#include "copy/guarded_copy.h"
#include "copy/pool.h"

namespace ldd {

namespace {

class Reading {
 public:
  Reading(std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths,
          const TakeUses& take, Code fault, std::span<std::uint32_t> sums)
      : addresses_(addresses), lengths_(lengths), take_(take), fault_(fault), sums_(sums) {}

  // Entries are held no longer than it takes to read kBatchBytes.
  [[nodiscard]] Outcome run(const Run& run) const {
    std::vector<Use> uses;
    std::uint64_t allowed = 0;
    for (std::size_t i = run.first; i < run.end; ++i) {
      std::uint32_t sum = 0;
      for (std::uint64_t offset = 0; offset < lengths_[i];) {
        if (allowed == 0) {
          uses.clear();
          const Outcome taken = take_(uses);
          if (!taken.ok()) {
            return taken;
          }
          allowed = kBatchBytes;
        }
        const std::uint64_t bytes = std::min(lengths_[i] - offset, allowed);
        const void* at = reinterpret_cast<const void*>(addresses_[i] + offset);
        if (!guarded_checksum(at, bytes, sum)) {
          return Outcome::failure(fault_, EFAULT, static_cast<std::int64_t>(i));
        }
        offset += bytes;
        allowed -= bytes;
      }
      sums_[i] = sum;
    }
    return {};
  }

 private:
  std::span<const std::uint64_t> addresses_;
  std::span<const std::uint64_t> lengths_;
  const TakeUses& take_;
  Code fault_;
  std::span<std::uint32_t> sums_;
};

Outcome run(const Reading& reading, std::span<const std::uint64_t> lengths) {
  prepare_guarded_copies();
  CopyPool& pool = CopyPool::instance();
  const std::vector<Run> runs = divide_whole(lengths, pool.threads());
  if (runs.size() == 1) {
    return reading.run(runs.front());
  }
  return pool.run(runs.size(), [&](std::size_t i) { return reading.run(runs[i]); });
}

}  // namespace

Outcome checksum_ranges(std::span<const std::uint64_t> addresses,
                        std::span<const std::uint64_t> lengths, const TakeUses& take, Code fault,
                        std::span<std::uint32_t> sums) {
  return run(Reading(addresses, lengths, take, fault, sums), lengths);
}

void probe_each(std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths,
                std::int64_t deadline_ns, std::vector<std::uint8_t>& readable) {
  prepare_guarded_copies();
  readable.clear();
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    bool intact = true;
    for (std::uint64_t offset = 0; intact && offset < lengths[i]; offset += kBatchBytes) {
      if (now_ns() >= deadline_ns) {
        return;
      }
      const std::uint64_t bytes = std::min(lengths[i] - offset, kBatchBytes);
      intact = guarded_probe(reinterpret_cast<const void*>(addresses[i] + offset), bytes);
    }
    readable.push_back(intact ? 1 : 0);
  }
}

Outcome checksum_entry(std::span<const std::uint64_t> addresses,
                       std::span<const std::uint64_t> lengths, const SumChecks& checks,
                       std::span<std::uint32_t> sums) {
  const std::shared_ptr<Entry> entry =
      checks.entry.named() ? checks.node->entries().find(checks.entry) : nullptr;
  // By value, as checksums of a GPU's memory may outlive the caller.
  const auto take = [entry, checks,
                     node = checks.node->weak_from_this().lock()](std::vector<Use>& uses) {
    if (checks.node->closed()) {
      return Outcome::failure(Code::kClosed);
    }
    if (now_ns() >= checks.deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    if (checks.entry.named() && !uses.emplace_back(entry, checks.entry.value)) {
      return Outcome::failure(Code::kLocalGone);
    }
    return Outcome{};
  };
  if (entry != nullptr && !entry->on_host()) {
    GpuRanges ranges{entry->device(),
                     {addresses.begin(), addresses.end()},
                     {lengths.begin(), lengths.end()},
                     take,
                     Code::kLocalFault};
    const auto more = [&] {
      return checks.node->closed() ? Outcome::failure(Code::kClosed) : Outcome{};
    };
    return checksum_on_gpu(std::move(ranges), checks.deadline_ns, more, sums);
  }
  return checksum_ranges(addresses, lengths, take, Code::kLocalFault, sums);
}

}  // namespace ldd
