// The work of one transfer: descriptor arrays, and their division into batches.
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

// A batch is the run of pieces from (descriptor `first`, byte `offset` of it) on; a long descriptor
// is cut, an empty one gives no piece.
struct Batch {
  std::size_t first = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// What the arrays amount to.
struct Extent {
  std::uint64_t bytes = 0;
  std::size_t pieces = 0;  // descriptors that are not empty
};

// Adds up the work. Throws std::invalid_argument when the arrays differ in length, a range wraps
// around the address space, or the sum exceeds kMaxTransferBytes.
Extent measure(const Descriptors& work);

// Divides measured work into batches of at most `batch_bytes` bytes and `batch_pieces` pieces.
std::vector<Batch> divide(const Descriptors& work, std::uint64_t batch_bytes = kBatchBytes,
                          std::size_t batch_pieces = kMaxIovecs);

// The largest transfer that is not worth waking another thread for.
inline constexpr std::uint64_t kSingleBatchBytes = 128 * 1024;

// How one operation is divided among `threads`: enough batches to keep all of them busy to the end.
struct Division {
  std::uint64_t batch_bytes = kBatchBytes;
  std::size_t batch_pieces = kMaxIovecs;
  bool single = false;  // one batch does it
};
Division division_for(const Extent& extent, std::size_t threads, std::size_t max_pieces);

// Descriptors [first, end).
struct Run {
  std::size_t first = 0;
  std::size_t end = 0;
};

// Divides work into runs of whole descriptors for `threads`, each of at least one and of at most
// kMaxIovecs.
std::vector<Run> divide_whole(std::span<const std::uint64_t> lengths, std::size_t threads);

// Fills the iovecs of one batch for both sides (room for kMaxIovecs each); returns how many of
// each.
std::size_t fill_iovecs(const Descriptors& work, const Batch& batch, iovec* local, iovec* remote);

// The descriptor that piece number `piece` of a batch was cut from.
std::size_t descriptor_of(const Descriptors& work, const Batch& batch, std::size_t piece);

}  // namespace ldd
