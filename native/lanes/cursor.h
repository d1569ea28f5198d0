// A position in a list of (address, length) pieces, for scatter/gather calls that may stop
// anywhere.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ldd {

class Cursor {
 public:
  Cursor() = default;
  // Covers `bytes` from byte `offset` of piece `first` on; the lengths must add up to at least
  // that. The spans are borrowed.
  Cursor(std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> lengths,
         std::size_t first, std::uint64_t offset, std::uint64_t bytes)
      : addresses_(addresses), lengths_(lengths), index_(first), offset_(offset), left_(bytes) {}

  [[nodiscard]] std::uint64_t left() const { return left_; }
  [[nodiscard]] bool done() const { return left_ == 0; }
  // The piece at the position, empty pieces skipped.
  [[nodiscard]] std::size_t index() const {
    std::size_t at = index_;
    while (at < lengths_.size() && lengths_[at] == (at == index_ ? offset_ : 0)) {
      ++at;
    }
    return at;
  }

  struct Filled {
    std::size_t pieces = 0;
    std::uint64_t bytes = 0;
  };
  // Describes at most `limit` bytes from the position on, in at most as many iovecs as `out` has;
  // with `joins`, pieces that follow one another in one iovec.
  [[nodiscard]] Filled fill(std::span<iovec> out, std::uint64_t limit, bool joins = false) const {
    Filled filled;
    std::uint64_t end = 0;
    std::size_t at = index_;
    std::uint64_t offset = offset_;
    const std::uint64_t wanted = std::min(limit, left_);
    for (; filled.bytes < wanted; ++at, offset = 0) {
      const std::uint64_t piece = std::min(lengths_[at] - offset, wanted - filled.bytes);
      const std::uint64_t begin = addresses_[at] + offset;
      if (piece == 0) {
        continue;
      }
      if (joins && filled.pieces > 0 && begin == end) {
        out[filled.pieces - 1].iov_len += piece;
      } else if (filled.pieces < out.size()) {
        out[filled.pieces++] = {reinterpret_cast<void*>(begin), piece};
      } else {
        break;
      }
      filled.bytes += piece;
      end = begin + piece;
    }
    return filled;
  }

  void advance(std::uint64_t bytes) {
    left_ -= bytes;
    while (bytes > 0) {
      const std::uint64_t piece = std::min(lengths_[index_] - offset_, bytes);
      bytes -= piece;
      offset_ += piece;
      if (offset_ == lengths_[index_]) {
        ++index_;
        offset_ = 0;
      }
    }
  }

 private:
  std::span<const std::uint64_t> addresses_;
  std::span<const std::uint64_t> lengths_;
  std::size_t index_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t left_ = 0;
};

}  // namespace ldd
