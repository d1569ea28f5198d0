// Tags of frames: without a lane's keys one can neither make a frame nor change, repeat,
// leave out or reorder one. docs/design/wire-format.md is the text of record.
#pragma once

#include <cstdint>
#include <span>

#include "wire/frames.h"
#include "wire/siphash.h"

namespace ldd::wire {

// The frames of one direction of a lane, in their order. Not thread-safe.
class Tags {
 public:
  Tags() = default;
  explicit Tags(const SipKey& key) : key_(key) {}

  // Writes the tag of the next frame into its head. `frame` is the head and what else of the frame
  // the tag covers; `more` is covered as well: what follows that in the frame, or has gone before
  // it.
  void seal(std::span<std::byte> frame, std::span<const std::byte> more = {});
  // The frame that was sealed last is not going to be sent.
  void take_back() { --count_; }
  // Whether the next frame of this direction is this one.
  [[nodiscard]] bool check(std::span<const std::byte> frame, std::span<const std::byte> more = {});

 private:
  [[nodiscard]] SipTag tag_of(std::span<const std::byte> frame,
                              std::span<const std::byte> more) const;

  SipKey key_{};
  std::uint64_t count_ = 0;  // frames so far
};

}  // namespace ldd::wire
