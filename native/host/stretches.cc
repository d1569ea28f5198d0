#include "host/stretches.h"

#include <algorithm>

namespace ldd {

namespace {

// Neighbors of which the gaps are looked at, to choose the size of batches.
constexpr std::size_t kGapSample = 64;

std::uint64_t begin_of(const iovec& range) {
  return reinterpret_cast<std::uint64_t>(range.iov_base);
}

// Finds the sorted range that has some bytes; mostly it is the one that it found before.
class Finder {
 public:
  explicit Finder(std::span<const Range> ranges) : ranges_(ranges) {}

  bool finds(std::uint64_t begin, std::uint64_t end) {
    if (!ranges_.empty() && !holds(begin, end)) {
      const auto after = std::upper_bound(
          ranges_.begin(), ranges_.end(), begin,
          [](std::uint64_t address, const Range& range) { return address < range.begin; });
      at_ = after == ranges_.begin() ? 0 : static_cast<std::size_t>(after - ranges_.begin()) - 1;
    }
    return !ranges_.empty() && holds(begin, end);
  }

 private:
  [[nodiscard]] bool holds(std::uint64_t begin, std::uint64_t end) const {
    return ranges_[at_].begin <= begin && end <= ranges_[at_].end;
  }

  std::span<const Range> ranges_;
  std::size_t at_ = 0;
};

}  // namespace

bool has_short_gaps(const Descriptors& work) {
  const std::size_t sample = std::min(work.size(), kGapSample);
  std::size_t found = 0;
  for (std::size_t i = 1; i < sample; ++i) {
    const std::uint64_t gap = work.remote[i] - (work.remote[i - 1] + work.length[i - 1]);
    found += gap != 0 && gap <= kGapBytes ? 1 : 0;
  }
  return found > sample / 2;
}

void Stretches::join(const iovec* local, const iovec* remote, std::size_t count,
                     std::span<const Range> registered) {
  num_local_ = num_remote_ = 0;
  gap_bytes_ = 0;
  Finder finder(registered);
  std::size_t gaps_left = kDataIovecs - count;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t begin = begin_of(remote[i]);
    const std::uint64_t gap = begin - end;  // huge if it begins before the end
    const bool joins = gap == 0 || (gap <= kGapBytes && gaps_left != 0 && finder.finds(end, begin));
    if (i == 0 || !joins) {
      remote_[num_remote_++] = remote[i];
    } else {
      if (gap != 0) {
        local_[num_local_++] = {scratch_.data(), gap};
        gap_bytes_ += gap;
        --gaps_left;
      }
      remote_[num_remote_ - 1].iov_len += gap + remote[i].iov_len;
    }
    local_[num_local_++] = local[i];
    end = begin + remote[i].iov_len;
  }
}

void Stretches::add(const iovec& local, const iovec& remote) {
  local_[num_local_++] = local;
  remote_[num_remote_++] = remote;
}

}  // namespace ldd
