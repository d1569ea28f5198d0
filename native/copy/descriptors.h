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

inline constexpr std::size_t kMaxIovecs = 1024;               // IOV_MAX of Linux
inline constexpr std::uint64_t kBatchBytes = 4 * 1024 * 1024;  // bounds the time between two checks

// A batch is the run of pieces from (descriptor `first`, byte `offset` of it) on, at most kMaxIovecs
// pieces and kBatchBytes bytes; a long descriptor is cut.
struct Batch {
  std::size_t first = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// Divides the work. Throws std::invalid_argument when an address range wraps.
std::vector<Batch> divide(const Descriptors& work, std::uint64_t batch_bytes = kBatchBytes);

// Fills the iovecs of one batch for both sides; returns how many of each.
std::size_t fill_iovecs(const Descriptors& work, const Batch& batch, iovec* local, iovec* remote);

}  // namespace ldd
