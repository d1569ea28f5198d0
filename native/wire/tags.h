// Tags of frames. Without a lane's keys it is not possible to make, change, repeat, omit or reorder
// a frame. docs/design/wire-format.md is normative.
#pragma once

#include <cstdint>
#include <span>

#include "wire/frames.h"
#include "wire/siphash.h"

namespace ldd::wire {

// The tags of one direction of a lane, in the order of its frames. Not thread-safe.
class Tags {
 public:
  Tags() = default;
  explicit Tags(const SipKey& key) : key_(key) {}

  // Writes the tag of the next frame into its head. `frame` is the head and, with it, the part of
  // the frame that the tag covers. The tag also covers `more`: bytes that follow or precede the
  // frame.
  void seal(std::span<std::byte> frame, std::span<const std::byte> more = {});
  // Undoes the last seal(): that frame will not be sent.
  void take_back() { --count_; }
  // Whether this is the next frame of this direction.
  [[nodiscard]] bool check(std::span<const std::byte> frame, std::span<const std::byte> more = {});

 private:
  [[nodiscard]] SipTag tag_of(std::span<const std::byte> frame,
                              std::span<const std::byte> more) const;

  SipKey key_{};
  std::uint64_t count_ = 0;  // frames so far
};

}  // namespace ldd::wire
