// Entries. Each is one registered cache: a guard, address ranges, and whether peers may access
// them. A thread takes a `Use` before it accesses the memory of an entry, for the length of one
// batch. Closing an entry first kills its guard and then waits until no `Use` is left. So a close
// is final, and takes at most the time of one batch, whatever any peer does. The memory belongs to
// the host, or to an accelerator and is then accessed through its driver only.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "memory/published.h"
#include "memory/range_index.h"

namespace ldd {

inline constexpr int kHostMemory = -1;

// Whether [address, address + length) lies inside one of the ranges, which must be sorted and must
// not touch. Overflow-safe.
bool any_contains(std::span<const Range> ranges, std::uint64_t address, std::uint64_t length);

class Entry {
 public:
  // `ranges` must be sorted and must not touch.
  Entry(Published& published, Ref ref, std::vector<Range> ranges, bool accessible, int device);

  [[nodiscard]] bool accessible() const { return accessible_; }
  // Ordinal of the accelerator that has the memory, or kHostMemory.
  [[nodiscard]] int device() const { return device_; }
  [[nodiscard]] bool on_host() const { return device_ == kHostMemory; }
  [[nodiscard]] std::uint64_t index() const { return index_; }
  // Begin of the first range; 0 when there is none.
  [[nodiscard]] std::uint64_t begin() const { return ranges_.empty() ? 0 : ranges_.front().begin; }
  [[nodiscard]] bool contains(std::uint64_t address, std::uint64_t length) const {
    return any_contains(ranges_, address, length);
  }

 private:
  friend class Use;
  friend class Entries;

  Published& published_;
  std::uint64_t index_;
  std::atomic<std::uint64_t> users_{0};
  std::atomic<std::uint64_t> drivers_{0};  // of users_
  std::vector<Range> ranges_;
  bool accessible_;
  int device_;
};

// What accesses the memory: a thread, or the driver of an accelerator, which may not return.
enum class Holder : std::uint8_t { kThread, kDriver };

// Held while the memory of an entry is accessed. False if the entry is not live at that value.
class Use {
 public:
  Use() = default;
  Use(std::shared_ptr<Entry> entry, std::uint64_t value, Holder holder = Holder::kThread);
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  Use(Use&& other) noexcept : entry_(std::move(other.entry_)), holder_(other.holder_) {}
  Use& operator=(Use&& other) noexcept {
    release();
    entry_ = std::move(other.entry_);
    holder_ = other.holder_;
    return *this;
  }
  ~Use() { release(); }

  explicit operator bool() const { return entry_ != nullptr; }
  void release();

 private:
  std::shared_ptr<Entry> entry_;
  Holder holder_ = Holder::kThread;
};

class Entries {
 public:
  explicit Entries(Published& published) : published_(published) {}

  // The instance ends: a driver that does not return keeps its uses, also of host memory, and is
  // not waited for longer than a second from now on.
  void end();

  // Throws std::length_error if no guard is left, std::invalid_argument if a range wraps.
  Ref open(std::vector<Range> ranges, bool accessible, int device = kHostMemory);
  // Kills the guard, waits until no use is left, frees the slot. False if not live at that value.
  bool close(Ref ref);
  // Kills the guard, waits, and makes the entry live again. Returns the new value, 0 if it was not
  // live.
  std::uint64_t reopen(Ref ref);
  // The two halves of reopen(), for what must happen while no thread accesses the memory. A
  // suspended entry is not live; it must be resumed. False if it was not live at that value.
  bool suspend(Ref ref);
  std::uint64_t resume(std::uint64_t index);
  // Returns the live entry of `ref`, or null.
  [[nodiscard]] std::shared_ptr<Entry> find(Ref ref) const;
  // Returns an accessible live entry that contains the range, and its value; for raw addresses.
  [[nodiscard]] std::pair<std::shared_ptr<Entry>, std::uint64_t> find_holding(
      std::uint64_t address, std::uint64_t length) const;

 private:
  [[nodiscard]] bool kill_and_drain(Ref ref, const std::shared_ptr<Entry>& entry);
  void index_ranges(const Entry& entry);  // called with the lock held

  Published& published_;
  std::atomic<std::int64_t> end_ns_{0};  // since when the instance ends; 0: it does not
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Entry>> entries_;
  RangeIndex accessible_;  // of the live accessible entries; changes together with their guards
};

}  // namespace ldd
