// The published page of an instance: a sealed memfd that the owner maps read-write and that peers
// on the same host map read-only. It holds what peers read without help from the owner's
// interpreter: guards, which show whether a registration is still live, the directory version, and
// the directory log.
//
// A guard is one 64-bit word: odd = live, even = free or dead. Every open and close adds one, so a
// reader that keeps (index, value) detects any change, including reuse of the slot.
// Guard 0 belongs to the instance itself.
//
// Each guard has two more words. For the guard of a link they are the proof of that link, which
// only its two ends can compute; for an entry whose memory peers may read, (first, count) of its
// address ranges in the page's table of ranges. They are written before the guard is live, or
// before the peer knows it, and are read between two checks of the guard.
//
// A table of exports says how peers on the same host can map memory of a GPU. Each row has a guard
// word of its own.
//
// The directory log grows by whole records. `version` is one word, era << 40 | tail. The tail grows
// when a record is appended; the era grows by two when the log is rewritten, and is odd meanwhile.
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
#include <utility>
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

// The most ranges that one entry lists; it bounds what a reader copies. An entry with more lists
// none, and features that need the list do without.
inline constexpr std::uint64_t kMostRanges = std::uint64_t{1} << 16;

// The most allocations of GPUs, and mappings of their virtual memory, that an instance exports at
// once.
inline constexpr std::uint64_t kExportCapacity = 4096;

// One allocation of a GPU, or one mapping of its virtual memory, as its owner publishes it. Peers
// trust none of it.
struct Export {
  Range range;                         // in the owner's address space
  std::array<std::byte, 16> gpu{};     // identity of the GPU
  std::uint64_t sharing = 0;           // what `handle` is (cuda::Sharing)
  std::array<std::byte, 64> handle{};  // of the driver, or the number of the owner's descriptor
};

// Shown on the page of an instance. It proves to the peer of a link that the page, and the process
// that has it mapped, belong to the other end of that link.
using Proof = std::array<std::byte, 16>;

struct PublishedHeader {
  std::uint64_t magic;
  std::uint64_t incarnation;
  std::atomic<std::uint64_t> version;
  std::uint64_t guard_capacity;
  std::uint64_t log_capacity;
  std::uint64_t range_capacity;
  std::atomic<std::uint64_t> exports_used;  // rows from this one on have never been used
  std::uint64_t reserved;
};
static_assert(sizeof(PublishedHeader) == 64);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

inline constexpr std::uint64_t kPublishedMagic = 0x34304745444c'4c4dULL;
inline constexpr unsigned kTailBits = 40;
inline constexpr std::uint64_t kTailMask = (std::uint64_t{1} << kTailBits) - 1;

// The reader's side. The memory may belong to another process and may change at any time.
class PublishedView {
 public:
  PublishedView() = default;
  // Throws std::invalid_argument if the bytes are not a published page of `incarnation`.
  PublishedView(std::span<const std::byte> page, std::uint64_t incarnation);

  [[nodiscard]] std::uint64_t version() const;
  // The guard's current word; 0, never live, if the index is outside the page.
  [[nodiscard]] std::uint64_t guard(std::uint64_t index) const;
  // Whether `ref` is unnamed or live. An even value is not live, even while the guard has that
  // value.
  [[nodiscard]] bool live(Ref ref) const {
    return !ref.named() || ((ref.value & 1) != 0 && guard(ref.index) == ref.value);
  }
  // The sorted address ranges that the owner lists for a live entry. Empty if the entry is not
  // live, lists none or too many, or its list is inconsistent.
  [[nodiscard]] std::vector<Range> ranges(Ref entry) const;
  // The live export that contains a range, and its guard: a row of the table of exports and the
  // value of its word. None if the owner exports no such memory.
  [[nodiscard]] std::optional<std::pair<Export, Ref>> find_export(std::uint64_t address,
                                                                  std::uint64_t length) const;
  // Whether a row of that table still has the value at which it was found.
  [[nodiscard]] bool export_live(Ref row) const;
  [[nodiscard]] bool exports_any() const;
  // Offset of the proof of a link in the page; none if there is no such guard.
  [[nodiscard]] std::optional<std::uint64_t> proof_offset(std::uint64_t index) const;
  // Copies log bytes [offset, offset + size), clamped to the log's capacity.
  [[nodiscard]] std::vector<std::byte> read_log(std::uint64_t offset, std::uint64_t size) const;

 private:
  const PublishedHeader* header_ = nullptr;
  const std::atomic<std::uint64_t>* guards_ = nullptr;
  const std::atomic<std::uint64_t>* facts_ = nullptr;   // two words for each guard
  const std::atomic<std::uint64_t>* ranges_ = nullptr;  // begin and end of each
  const std::atomic<std::uint64_t>* exports_ = nullptr;
  const std::byte* log_ = nullptr;
  std::uint64_t guard_capacity_ = 0;
  std::uint64_t range_capacity_ = 0;
  std::uint64_t log_capacity_ = 0;
};

// The owner's side. Thread-safe. A forked child shares the page but does not own it: there, calls
// change nothing, and those that cannot return a failure throw std::logic_error.
class Published {
 public:
  // Throws std::system_error if the memory cannot be allocated.
  Published(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity);

  [[nodiscard]] int fd() const { return fd_.get(); }
  // The address of the page in this process.
  [[nodiscard]] std::uint64_t address() const {
    return reinterpret_cast<std::uint64_t>(mapping_.data());
  }
  [[nodiscard]] std::size_t size_bytes() const { return mapping_.size_bytes(); }
  [[nodiscard]] const PublishedView& view() const { return view_; }
  // True in a forked child of the owner.
  [[nodiscard]] bool inherited() const { return mark_.inherited(); }
  // Throws std::logic_error in a forked child.
  void require_owner() const;

  // Brings the guards and proofs, which peers read, into memory if they were paged out.
  void bring_in() const;

  // Opens a guard. Lists `ranges` if the table has room; features that need the list do without
  // otherwise. Throws std::length_error when all guards are in use.
  Ref open_guard(std::span<const Range> ranges = {});
  // Shows the proof of the link that has this guard. Throws std::invalid_argument if the guard is
  // not live at that value.
  void show_proof(Ref link, const Proof& proof);
  // Kills a guard that is live at `ref.value`; false if it is not. Does not free it.
  bool kill_guard(Ref ref);
  // Makes a dead guard live again without freeing its slot. Returns the new value.
  std::uint64_t revive_guard(std::uint64_t index);
  // Frees a dead guard's slot and its ranges for reuse.
  void free_guard(std::uint64_t index);

  // Publishes an allocation of a GPU. Throws std::length_error when the table is full.
  Ref open_export(const Export& exported);
  // Ends it; peers find it no more, and what they have mapped by it no longer counts as live. Does
  // nothing for an unnamed row, or one that has ended.
  void close_export(Ref row);

  // Appends one record. Throws std::length_error when the log is full and must be rewritten.
  void append(std::span<const std::byte> record);
  // Replaces the whole log.
  void rewrite(std::span<const std::byte> records);

 private:
  [[nodiscard]] PublishedHeader& header() const;
  [[nodiscard]] std::atomic<std::uint64_t>& guard_word(std::uint64_t index) const;
  [[nodiscard]] std::span<std::atomic<std::uint64_t>> facts(std::uint64_t index) const;
  [[nodiscard]] std::atomic<std::uint64_t>* range_words() const;
  [[nodiscard]] std::atomic<std::uint64_t>* export_words() const;
  [[nodiscard]] std::byte* log() const;
  // Rows of the table of ranges.
  struct Listed {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
  };
  // Called with guards_mutex_ held.
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
  std::mutex exports_mutex_;
  std::vector<std::uint64_t> free_exports_;
  std::mutex log_mutex_;
  std::vector<std::uint64_t> free_guards_;
  std::uint64_t next_guard_ = 0;
  std::unordered_map<std::uint64_t, Listed> listed_;    // by guard
  std::map<std::uint64_t, std::uint64_t> free_ranges_;  // first -> count; never adjacent
};

}  // namespace ldd
