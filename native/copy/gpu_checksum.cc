#include "copy/gpu_checksum.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "copy/crc32c.h"
#include "copy/descriptors.h"
#include "cuda/copy.h"
#include "cuda/job.h"
#include "cuda/pinned.h"

namespace ldd {

namespace {

// What is summed between two checks.
constexpr std::size_t kMostSegments = 1024;
constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;
static_assert(kMostSegments * (sizeof(cuda::Segment) + sizeof(std::uint32_t)) <=
              cuda::kMostItems * sizeof(cuda::CopyItem));

class GpuSums final : public cuda::Job {
 public:
  explicit GpuSums(GpuRanges ranges)
      : ranges_(std::move(ranges)), sums_(ranges_.addresses.size(), 0) {}

  Outcome run() override {
    const cuda::Loaded loaded = cuda::present_driver();
    std::string problem;
    cuda::Device* const device = loaded.driver == nullptr
                                     ? nullptr
                                     : cuda::Device::find(*loaded.driver, ranges_.device, problem);
    if (device == nullptr) {
      return Outcome::failure(Code::kSystem, ENODEV);
    }
    const cuda::Current current(*loaded.driver, device->context());
    if (current.result() != cuda::Result::kSuccess) {
      return cuda::outcome_of(current.result());
    }
    for (std::size_t first = 0; first < sums_.size();) {
      const Run part{first, end_of(first)};
      const Outcome outcome = sum(*device, part);
      if (!outcome.ok()) {
        return outcome;
      }
      first = part.end;
    }
    return {};
  }

  [[nodiscard]] const std::vector<std::uint32_t>& sums() const { return sums_; }

 private:
  [[nodiscard]] std::size_t end_of(std::size_t first) const {
    std::size_t end = first;
    std::uint64_t bytes = 0;
    do {
      bytes += ranges_.lengths[end++];
    } while (end < sums_.size() && end - first < kMostSegments &&
             ranges_.lengths[end] <= kMostBytes - std::min(bytes, kMostBytes));
    return end;
  }

  [[nodiscard]] Outcome sum(cuda::Device& device, const Run& part) {
    std::vector<Use> uses;
    const Outcome taken = stopping() ? Outcome::failure(Code::kTimeout) : ranges_.take(uses);
    if (!taken.ok()) {
      return taken;
    }
    cuda::StreamLease lease(device);
    if (lease.result() != cuda::Result::kSuccess) {
      return cuda::outcome_of(lease.result());
    }
    const bool by_kernel =
        confirmed(device.driver(), part) && device.kernels() != nullptr && lease.list(0) != nullptr;
    Outcome outcome =
        cuda::outcome_of(by_kernel ? launch(device, lease, part) : sum_copies(device, part));
    if (outcome.code == Code::kLocalFault) {
      outcome = Outcome::failure(ranges_.fault, EFAULT, static_cast<std::int64_t>(part.first));
    }
    return outcome;
  }

  // Whether a kernel may access the ranges.
  [[nodiscard]] bool confirmed(const cuda::Driver& driver, const Run& part) const {
    cuda::AllocationCheck check(driver);
    for (std::size_t i = part.first; i < part.end; ++i) {
      if (!check.contains(ranges_.addresses[i], ranges_.lengths[i])) {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] cuda::Result launch(cuda::Device& device, cuda::StreamLease& lease,
                                    const Run& part) {
    auto* const segments = reinterpret_cast<cuda::Segment*>(lease.list(0));
    auto* const sums = reinterpret_cast<std::uint32_t*>(segments + kMostSegments);
    const std::size_t count = part.end - part.first;
    for (std::size_t i = 0; i < count; ++i) {
      segments[i] = {ranges_.addresses[part.first + i], ranges_.lengths[part.first + i]};
    }
    const cuda::Driver& driver = device.driver();
    const cuda::Result launched = device.kernels()->crc32c(driver, lease.stream(), segments,
                                                           static_cast<std::uint32_t>(count), sums);
    const cuda::Result ended = cuda::poll([&] { return driver.stream_query(lease.stream()); });
    if (launched == cuda::Result::kSuccess && ended == cuda::Result::kSuccess) {
      std::copy_n(sums, count, sums_.begin() + static_cast<std::ptrdiff_t>(part.first));
    }
    return launched == cuda::Result::kSuccess ? ended : launched;
  }

  [[nodiscard]] cuda::Result sum_copies(cuda::Device& device, const Run& part) {
    const auto block = cuda::PinnedPool::instance().take(device.driver());
    if (block == nullptr) {
      return cuda::Result::kOutOfMemory;
    }
    cuda::StreamCopies copies(device, CopyWay::kEngine, 1);
    for (std::size_t i = part.first; i < part.end; ++i) {
      sums_[i] = 0;
      for (std::uint64_t done = 0; done < ranges_.lengths[i];) {
        const std::uint64_t size =
            std::min<std::uint64_t>(ranges_.lengths[i] - done, cuda::PinnedPool::kBlockBytes);
        const iovec to{block.get(), size};
        const iovec from{reinterpret_cast<void*>(ranges_.addresses[i] + done), size};
        copies.begin({&to, &from, 1});
        if (const cuda::Result result = copies.finish(); result != cuda::Result::kSuccess) {
          return result;
        }
        sums_[i] = crc32c({block.get(), size}, sums_[i]);
        done += size;
      }
    }
    return cuda::Result::kSuccess;
  }

  GpuRanges ranges_;
  std::vector<std::uint32_t> sums_;
};

}  // namespace

Outcome checksum_on_gpu(GpuRanges ranges, std::int64_t deadline_ns,
                        const std::function<Outcome()>& more, std::span<std::uint32_t> sums) {
  const auto job = std::make_shared<GpuSums>(std::move(ranges));
  const Outcome outcome = cuda::run_job(job, deadline_ns, more);
  if (outcome.ok()) {
    std::copy(job->sums().begin(), job->sums().end(), sums.begin());
  }
  return outcome;
}

}  // namespace ldd
