#include "copy/descriptors.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace ldd {

namespace {

constexpr std::uint64_t kLeastBatchBytes = 64 * 1024;
constexpr std::uint64_t kLeastRunBytes = 128 * 1024;
constexpr std::size_t kLeastBatchPieces = 32;
constexpr std::size_t kBatchesPerThread = 4;

bool wraps(std::uint64_t address, std::uint64_t length) {
  return length > std::numeric_limits<std::uint64_t>::max() - address;
}

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

Extent measure(const Descriptors& work) {
  if (work.local.size() != work.size() || work.remote.size() != work.size()) {
    throw std::invalid_argument("the descriptor arrays differ in length");
  }
  Extent extent;
  for (std::size_t i = 0; i < work.size(); ++i) {
    const std::uint64_t length = work.length[i];
    if (wraps(work.local[i], length) || wraps(work.remote[i], length)) {
      throw std::invalid_argument("an address range wraps around the address space");
    }
    if (length > kMaxTransferBytes - extent.bytes) {
      throw std::invalid_argument("the transfer is larger than 16 TiB");
    }
    extent.bytes += length;
    extent.pieces += length != 0 ? 1 : 0;
  }
  return extent;
}

std::vector<Batch> divide(const Descriptors& work, std::uint64_t batch_bytes,
                          std::size_t batch_pieces) {
  std::vector<Batch> batches;
  Batch batch;
  std::size_t pieces = 0;
  for (std::size_t i = 0; i < work.size(); ++i) {
    std::uint64_t offset = 0;
    while (offset < work.length[i]) {
      if (pieces == batch_pieces || batch.bytes == batch_bytes) {
        batches.push_back(batch);
        pieces = 0;
      }
      if (pieces == 0) {
        batch = {i, offset, 0};
      }
      const std::uint64_t take = std::min(work.length[i] - offset, batch_bytes - batch.bytes);
      batch.bytes += take;
      offset += take;
      ++pieces;
    }
  }
  if (pieces != 0) {
    batches.push_back(batch);
  }
  return batches;
}

Division division_for(const Extent& extent, std::size_t threads, std::size_t max_pieces) {
  Division division;
  if (extent.pieces <= max_pieces &&
      (extent.bytes <= kSingleBatchBytes || (threads <= 1 && extent.bytes <= kBatchBytes))) {
    division.single = true;
    return division;
  }
  const std::size_t parts = threads * kBatchesPerThread;
  division.batch_bytes = std::clamp(extent.bytes / parts + 1, kLeastBatchBytes, kBatchBytes);
  division.batch_pieces =
      std::clamp(extent.pieces / parts + 1, std::min(kLeastBatchPieces, max_pieces), max_pieces);
  return division;
}

std::vector<Run> divide_whole(std::span<const std::uint64_t> lengths, std::size_t threads) {
  const std::uint64_t total = std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
  const std::uint64_t limit =
      threads <= 1 || total <= kSingleBatchBytes
          ? kBatchBytes
          : std::clamp(total / (threads * kBatchesPerThread), kLeastRunBytes, kBatchBytes);
  std::vector<Run> runs;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (runs.empty() || bytes >= limit || i - runs.back().first == kMaxIovecs) {
      runs.push_back({i, i});
      bytes = 0;
    }
    bytes += lengths[i];
    runs.back().end = i + 1;
  }
  return runs;
}

std::size_t fill_iovecs(const Descriptors& work, const Batch& batch, iovec* local, iovec* remote) {
  std::size_t count = 0;
  std::uint64_t left = batch.bytes;
  std::uint64_t offset = batch.offset;
  for (std::size_t i = batch.first; left != 0; ++i, offset = 0) {
    const std::uint64_t take = std::min(work.length[i] - offset, left);
    if (take != 0) {
      local[count] = {pointer(work.local[i] + offset), take};
      remote[count] = {pointer(work.remote[i] + offset), take};
      ++count;
      left -= take;
    }
  }
  return count;
}

std::size_t descriptor_of(const Descriptors& work, const Batch& batch, std::size_t piece) {
  std::size_t i = batch.first;
  for (std::size_t passed = 0;; ++i) {
    if (work.length[i] != 0 && passed++ == piece) {
      return i;
    }
  }
}

}  // namespace ldd
