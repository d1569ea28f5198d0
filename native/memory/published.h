// The published page of an instance: a sealed memfd that the owner maps read-write and that peers
// on the same host map read-only. It holds what a peer must be able to see without asking the
// owner's interpreter: guards (is this registration still live?), the directory version and the
// directory log.
//
// A guard is one 64-bit word: odd = live, even = free or dead. Every opening and closing adds one,
// so that a reader which remembers (index, value) notices any change, a reuse of the slot included.
// Guard 0 belongs to the instance itself.
//
// Beside each guard lie two words that say something of what it guards. For the guard of a link
// they are the proof of that link, which only its two ends can have made; for an entry whose memory
// peers may read, (first, count) of its address ranges in the page's table of ranges. They are
// written while the guard is not looked at (before it lives, or before the peer is told of it), and
// are read between two looks at the guard.
//
// The directory log grows by whole records. `version` is one word, era << 40 | tail: the tail moves
// when a record is appended; the era moves by two when the log is rewritten and is odd meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/fork.h"
#include "base/mapped_region.h"
#include "base/unique_fd.h"
#include "memory/range_index.h"

namespace ldd {

struct Ref {
  std::uint64_t index = 0;
  std::uint64_t value = 0;  // 0 = nothing to check

  [[nodiscard]] bool named() const { return value != 0; }
};

inline constexpr std::uint64_t kAnyEntry =
    0xFFFFFFFF;  // raw-address requests: any accessible entry

// Ranges that one entry lists at most, so that a peer's word about how many there are costs no more
// than a copy of these. An entry of more lists none: then what needs the list is done without.
inline constexpr std::uint64_t kMostRanges = std::uint64_t{1} << 16;

// What an instance shows on its page so that the peer of a link can tell that the page, and the
// process that has it mapped, are the other end of that link.
using Proof = std::array<std::byte, 16>;

struct PublishedHeader {
  std::uint64_t magic;
  std::uint64_t incarnation;
  std::atomic<std::uint64_t> version;
  std::uint64_t guard_capacity;
  std::uint64_t log_capacity;
  std::uint64_t range_capacity;
  std::uint64_t reserved[2];
};
static_assert(sizeof(PublishedHeader) == 64);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

inline constexpr std::uint64_t kPublishedMagic = 0x32304745444c'4c4dULL;
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
  // The address ranges that the owner lists for the entry, sorted, as they were while it lived;
  // empty when it does not live, lists none or too many, or what it says is impossible.
  [[nodiscard]] std::vector<Range> ranges(Ref entry) const;
  // Where the proof of a link lies in the page; nothing when there is no such guard.
  [[nodiscard]] std::optional<std::uint64_t> proof_offset(std::uint64_t index) const;
  // Copies log bytes [offset, offset + size) clamped to the log's capacity.
  [[nodiscard]] std::vector<std::byte> read_log(std::uint64_t offset, std::uint64_t size) const;

 private:
  const PublishedHeader* header_ = nullptr;
  const std::atomic<std::uint64_t>* guards_ = nullptr;
  const std::atomic<std::uint64_t>* facts_ = nullptr;   // two words for each guard
  const std::atomic<std::uint64_t>* ranges_ = nullptr;  // begin and end of each
  const std::byte* log_ = nullptr;
  std::uint64_t guard_capacity_ = 0;
  std::uint64_t range_capacity_ = 0;
  std::uint64_t log_capacity_ = 0;
};

// Owner's side. Thread-safe. A forked child shares the page with the owner but does not own it:
// there nothing is changed, and what cannot say so by its result throws std::logic_error.
class Published {
 public:
  // Throws std::system_error when the memory cannot be had.
  Published(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity);

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Where this process has the page mapped.
  [[nodiscard]] std::uint64_t address() const {
    return reinterpret_cast<std::uint64_t>(mapping_.data());
  }
  [[nodiscard]] std::size_t size_bytes() const { return mapping_.size_bytes(); }
  [[nodiscard]] const PublishedView& view() const { return view_; }
  // True in a forked child of the owner.
  [[nodiscard]] bool inherited() const { return mark_.inherited(); }
  // Throws std::logic_error there.
  void require_owner() const;

  // Brings what peers look for in this process's memory (proofs) into it, if it was paged out.
  void bring_in() const;

  // Opens a guard, which lists `ranges`, if any and if there is room in the table: peers then do
  // without what needs the list. Throws std::length_error when all guards are in use.
  Ref open_guard(std::span<const Range> ranges = {});
  // Shows the proof of the link that the guard is of. Throws std::invalid_argument when it does not
  // live at that value.
  void show_proof(Ref link, const Proof& proof);
  // Live at `ref.value` -> dead; false when it was not (somebody else was first). Does not free it.
  bool kill_guard(Ref ref);
  // Makes a dead guard live again without freeing its slot; returns the new value.
  std::uint64_t revive_guard(std::uint64_t index);
  // Returns a dead guard's slot for reuse, and its ranges.
  void free_guard(std::uint64_t index);

  // Appends one record; throws std::length_error when the log is full (rewrite it then).
  void append(std::span<const std::byte> record);
  // Replaces the whole log.
  void rewrite(std::span<const std::byte> records);

 private:
  [[nodiscard]] PublishedHeader& header() const;
  [[nodiscard]] std::atomic<std::uint64_t>& guard_word(std::uint64_t index) const;
  [[nodiscard]] std::span<std::atomic<std::uint64_t>> facts(std::uint64_t index) const;
  [[nodiscard]] std::atomic<std::uint64_t>* range_words() const;
  [[nodiscard]] std::byte* log() const;
  // Rows of the table of ranges.
  struct Listed {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
  };
  // With guards_mutex_ held.
  void list_ranges(std::uint64_t index, std::span<const Range> ranges);
  [[nodiscard]] std::optional<std::uint64_t> take_room(std::uint64_t count);
  void give_room(Listed room);

  ProcessMark mark_;
  std::uint64_t guard_capacity_;
  std::uint64_t range_capacity_;
  std::uint64_t log_capacity_;
  UniqueFd fd_;
  MappedRegion mapping_;
  PublishedView view_;
  mutable std::mutex guards_mutex_;
  std::mutex log_mutex_;
  std::vector<std::uint64_t> free_guards_;
  std::uint64_t next_guard_ = 0;
  std::unordered_map<std::uint64_t, Listed> listed_;    // by guard
  std::map<std::uint64_t, std::uint64_t> free_ranges_;  // first -> count; never adjacent
};

}  // namespace ldd
