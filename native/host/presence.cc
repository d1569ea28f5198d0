#include "host/presence.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <system_error>

namespace ldd {

namespace {

// From <linux/fs.h> of Linux 6.7; the headers of the build machine may be older.
struct ScannedRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};
struct ScanArguments {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t regions;
  std::uint64_t num_regions;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
constexpr unsigned long kScan = _IOWR('f', 16, ScanArguments);
constexpr std::uint64_t kPageIsPresent = std::uint64_t{1} << 3;

// A bit of the word of one page in a process's page map.
constexpr std::uint64_t kPresentBit = std::uint64_t{1} << 63;

// Scanning this many further pages costs about as much as another system call.
constexpr std::uint64_t kGapPages = 128;

std::uint64_t page_bytes() {
  static const auto bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

// Masks instead of divisions: there may be thousands of ranges, and divisions would cost more than
// the scan of their pages.
std::uint64_t begin_of(const iovec& range) {
  return reinterpret_cast<std::uint64_t>(range.iov_base) & ~(page_bytes() - 1);
}

std::uint64_t end_of(const iovec& range) {
  const auto last = reinterpret_cast<std::uint64_t>(range.iov_base) + range.iov_len - 1;
  return (last | (page_bytes() - 1)) + 1;
}

}  // namespace

PagePresence::PagePresence(int pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  pagemap_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap_.valid()) {
    throw std::system_error(errno, std::generic_category(), "cannot open " + path);
  }
  ScanArguments nothing{};
  nothing.size = sizeof nothing;
  scans_ = ::ioctl(pagemap_.get(), kScan, &nothing) == 0;
}

bool PagePresence::all_present(std::span<const iovec> ranges) const {
  const std::uint64_t gap = scans_ ? kGapPages * page_bytes() : 0;
  for (std::size_t i = 0; i < ranges.size();) {
    const std::uint64_t begin = begin_of(ranges[i]);
    std::uint64_t end = end_of(ranges[i]);
    std::size_t next = i + 1;
    while (next < ranges.size() && begin_of(ranges[next]) >= begin &&
           begin_of(ranges[next]) <= end + gap) {
      end = std::max(end, end_of(ranges[next]));
      ++next;
    }
    if (!present(begin, end)) {
      // The absent page may lie in a gap.
      const auto absent = [&](const iovec& range) {
        return !present(begin_of(range), end_of(range));
      };
      if (next == i + 1 ||
          std::any_of(ranges.begin() + static_cast<std::ptrdiff_t>(i),
                      ranges.begin() + static_cast<std::ptrdiff_t>(next), absent)) {
        return false;
      }
    }
    i = next;
  }
  return true;
}

bool PagePresence::present(std::uint64_t begin, std::uint64_t end) const {
  if (!scans_) {
    return present_by_reading(begin, end);
  }
  ScannedRegion absent{};
  ScanArguments scan{};
  scan.size = sizeof scan;
  scan.start = begin;
  scan.end = end;
  scan.regions = reinterpret_cast<std::uint64_t>(&absent);
  scan.num_regions = 1;
  scan.max_pages = 1;
  scan.category_inverted = kPageIsPresent;
  scan.category_mask = kPageIsPresent;
  scan.return_mask = kPageIsPresent;
  return ::ioctl(pagemap_.get(), kScan, &scan) <= 0;
}

// For Linux before 6.7. An unmapped page looks like one that was never accessed; both are left to
// the owner.
bool PagePresence::present_by_reading(std::uint64_t begin, std::uint64_t end) const {
  std::array<std::uint64_t, 512> words{};
  for (std::uint64_t page = begin / page_bytes(); page < end / page_bytes();) {
    const std::size_t count = std::min<std::size_t>(words.size(), end / page_bytes() - page);
    const ssize_t got = ::pread(pagemap_.get(), words.data(), count * sizeof words[0],
                                static_cast<off_t>(page * sizeof words[0]));
    if (got != static_cast<ssize_t>(count * sizeof words[0])) {
      return true;
    }
    const bool all = std::all_of(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(count),
                                 [](std::uint64_t word) { return (word & kPresentBit) != 0; });
    if (!all) {
      return false;
    }
    page += count;
  }
  return true;
}

}  // namespace ldd
