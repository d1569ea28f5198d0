// Which pages of another process are in memory. A system call that reads an absent page waits until
// the page comes, which may be never (its handler has stopped, its disk has failed), and cannot be
// interrupted. So a reader checks first and leaves absent pages to their owner.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/unique_fd.h"

namespace ldd {

class PagePresence {
 public:
  PagePresence() = default;
  // Of process `pid`. Throws std::system_error if its page map cannot be read.
  explicit PagePresence(int pid);

  // Whether no page of the ranges is absent. Pages that are not mapped count as present: reading
  // them fails at once, and so does reading from a process that is gone.
  [[nodiscard]] bool all_present(std::span<const iovec> ranges) const;

 private:
  [[nodiscard]] bool present(std::uint64_t begin, std::uint64_t end) const;
  [[nodiscard]] bool present_by_reading(std::uint64_t begin, std::uint64_t end) const;

  UniqueFd pagemap_;
  bool scans_ = false;
};

}  // namespace ldd
