// The memory of a peer that one system call reads: ranges that are adjacent or nearly so are joined
// to stretches, so that the kernel pins fewer pages. The local side may stay scattered.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "copy/descriptors.h"
#include "memory/range_index.h"

namespace ldd {

// Per call of process_vm_readv; one more reads the proof.
inline constexpr std::size_t kDataIovecs = kMaxIovecs - 1;

// Bytes between two ranges that are read as well, into a scratch buffer, and dropped: that takes
// less time than pinning the pages once more. Less than a page, so that no other page is read.
inline constexpr std::size_t kGapBytes = 1024;

// Whether most neighbors have a short gap between them, for which a batch must leave room.
bool has_short_gaps(const Descriptors& work);

// The arguments of one system call, with room for one more range on both sides. Too large for a
// thread with a small stack.
class Stretches {
 public:
  // Joins `count` ranges of a peer, at most kDataIovecs, which are read to `local`. Gaps are read
  // only inside one of the `registered` ranges, which must be sorted: what lies between two
  // registrations was never given to this process. Plans are ordered by source for this.
  void join(const iovec* local, const iovec* remote, std::size_t count,
            std::span<const Range> registered);
  // Reads one more range.
  void add(const iovec& local, const iovec& remote);

  [[nodiscard]] std::span<const iovec> local() const { return {local_.data(), num_local_}; }
  [[nodiscard]] std::span<const iovec> remote() const { return {remote_.data(), num_remote_}; }
  [[nodiscard]] std::uint64_t gap_bytes() const { return gap_bytes_; }

 private:
  std::array<iovec, kMaxIovecs> local_{};
  std::array<iovec, kMaxIovecs> remote_{};
  std::size_t num_local_ = 0;
  std::size_t num_remote_ = 0;
  std::uint64_t gap_bytes_ = 0;
  std::array<std::byte, kGapBytes> scratch_{};
};

}  // namespace ldd
