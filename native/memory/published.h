// The published page of an instance: a sealed memfd that the owner maps read-write and that peers
// on the same host map read-only. It holds what a peer must be able to see without asking the
// owner's interpreter: guards (is this registration still live?), the directory version and the
// directory log.
//
// A guard is one 64-bit word: odd = live, even = free or dead. Every opening and closing adds one,
// so that a reader which remembers (index, value) notices any change, a reuse of the slot included.
// Guard 0 belongs to the instance itself.
//
// The directory log grows by whole records. `version` is one word, era << 40 | tail: the tail moves
// when a record is appended; the era moves by two when the log is rewritten and is odd meanwhile.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "base/fork.h"
#include "base/mapped_region.h"
#include "base/unique_fd.h"

namespace ldd {

struct Ref {
  std::uint64_t index = 0;
  std::uint64_t value = 0;  // 0 = nothing to check

  [[nodiscard]] bool named() const { return value != 0; }
};

inline constexpr std::uint64_t kAnyEntry =
    0xFFFFFFFF;  // raw-address requests: any accessible entry

struct PublishedHeader {
  std::uint64_t magic;
  std::uint64_t incarnation;
  std::atomic<std::uint64_t> version;
  std::uint64_t guard_capacity;
  std::uint64_t log_capacity;
  std::uint64_t reserved[3];
};
static_assert(sizeof(PublishedHeader) == 64);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

inline constexpr std::uint64_t kPublishedMagic = 0x31304745444c'4c4dULL;
inline constexpr unsigned kTailBits = 40;
inline constexpr std::uint64_t kTailMask = (std::uint64_t{1} << kTailBits) - 1;

// Reader's side; the memory may belong to another process and change at any time.
class PublishedView {
 public:
  PublishedView() = default;
  // Throws std::invalid_argument when the bytes are no published page of `incarnation`.
  PublishedView(std::span<const std::byte> page, std::uint64_t incarnation);

  [[nodiscard]] std::uint64_t version() const;
  // The guard's word now; 0 when the index is outside the page (never live).
  [[nodiscard]] std::uint64_t guard(std::uint64_t index) const;
  // Whether nothing is named, or what is named lives. An even value names something dead, even
  // while the guard holds that very value.
  [[nodiscard]] bool live(Ref ref) const {
    return !ref.named() || ((ref.value & 1) != 0 && guard(ref.index) == ref.value);
  }
  // Copies log bytes [offset, offset + size) clamped to the log's capacity.
  [[nodiscard]] std::vector<std::byte> read_log(std::uint64_t offset, std::uint64_t size) const;

 private:
  const PublishedHeader* header_ = nullptr;
  const std::atomic<std::uint64_t>* guards_ = nullptr;
  const std::byte* log_ = nullptr;
  std::uint64_t guard_capacity_ = 0;
  std::uint64_t log_capacity_ = 0;
};

// Owner's side. Thread-safe. A forked child shares the page with the owner but does not own it:
// there nothing is changed, and what cannot say so by its result throws std::logic_error.
class Published {
 public:
  // Throws std::system_error when the memory cannot be had.
  Published(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::size_t size_bytes() const { return mapping_.size_bytes(); }
  [[nodiscard]] const PublishedView& view() const { return view_; }
  // True in a forked child of the owner.
  [[nodiscard]] bool inherited() const { return mark_.inherited(); }
  // Throws std::logic_error there.
  void require_owner() const;

  // Opens a guard; throws std::length_error when all are in use.
  Ref open_guard();
  // Live at `ref.value` -> dead; false when it was not (somebody else was first). Does not free it.
  bool kill_guard(Ref ref);
  // Makes a dead guard live again without freeing its slot; returns the new value.
  std::uint64_t revive_guard(std::uint64_t index);
  // Returns a dead guard's slot for reuse.
  void free_guard(std::uint64_t index);

  // Appends one record; throws std::length_error when the log is full (rewrite it then).
  void append(std::span<const std::byte> record);
  // Replaces the whole log.
  void rewrite(std::span<const std::byte> records);

 private:
  [[nodiscard]] PublishedHeader& header() const;
  [[nodiscard]] std::atomic<std::uint64_t>& guard_word(std::uint64_t index) const;
  [[nodiscard]] std::byte* log() const;

  ProcessMark mark_;
  std::uint64_t guard_capacity_;
  std::uint64_t log_capacity_;
  UniqueFd fd_;
  MappedRegion mapping_;
  PublishedView view_;
  std::mutex guards_mutex_;
  std::mutex log_mutex_;
  std::vector<std::uint64_t> free_guards_;
  std::uint64_t next_guard_ = 0;
};

}  // namespace ldd
