// The work of one transfer: descriptor arrays and their division into batches.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ldd {

// Three arrays of one length, borrowed for the duration of the operation.
struct Descriptors {
  std::span<const std::uint64_t> local;
  std::span<const std::uint64_t> remote;
  std::span<const std::uint64_t> length;

  [[nodiscard]] std::size_t size() const { return length.size(); }
};

inline constexpr std::size_t kMaxIovecs = 1024;                // IOV_MAX of Linux
inline constexpr std::uint64_t kBatchBytes = 4 * 1024 * 1024;  // bounds the time between two checks
inline constexpr std::uint64_t kMaxTransferBytes = std::uint64_t{1} << 44;

// A batch is a run of pieces that starts at byte `offset` of descriptor `first`. A long descriptor
// is divided into several pieces; an empty one gives none.
struct Batch {
  std::size_t first = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// The size of the work.
struct Extent {
  std::uint64_t bytes = 0;
  std::size_t pieces = 0;  // descriptors that are not empty
};

// Computes the size of the work. Throws std::invalid_argument when the arrays differ in length, a
// range wraps around the address space, or the sum exceeds kMaxTransferBytes.
Extent measure(const Descriptors& work);

// Divides measured work into batches of at most `batch_bytes` bytes and `batch_pieces` pieces.
std::vector<Batch> divide(const Descriptors& work, std::uint64_t batch_bytes = kBatchBytes,
                          std::size_t batch_pieces = kMaxIovecs);

// The largest transfer that is not worth waking another thread.
inline constexpr std::uint64_t kSingleBatchBytes = 128 * 1024;

// How to divide one operation among `threads`: into enough batches to keep all of them busy to the
// end.
struct Division {
  std::uint64_t batch_bytes = kBatchBytes;
  std::size_t batch_pieces = kMaxIovecs;
  bool single = false;  // one batch suffices
};
Division division_for(const Extent& extent, std::size_t threads, std::size_t max_pieces);

// Descriptors [first, end).
struct Run {
  std::size_t first = 0;
  std::size_t end = 0;
};

// Divides work into runs of whole descriptors for `threads`; each run has 1 to kMaxIovecs of them.
std::vector<Run> divide_whole(std::span<const std::uint64_t> lengths, std::size_t threads);

// Fills the iovecs of one batch for both sides, which must have room for kMaxIovecs each. Returns
// their number.
std::size_t fill_iovecs(const Descriptors& work, const Batch& batch, iovec* local, iovec* remote);

// The index of the descriptor that piece number `piece` of a batch belongs to.
std::size_t descriptor_of(const Descriptors& work, const Batch& batch, std::size_t piece);

}  // namespace ldd
