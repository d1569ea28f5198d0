#include "memory/entries.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace ldd {

namespace {

constexpr std::int64_t kHungNs = 1'000'000'000;

std::vector<Range> joined(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> result;
  for (const Range& range : ranges) {
    if (!result.empty() && range.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

}  // namespace

Entry::Entry(Published& published, Ref ref, std::vector<Range> ranges, bool accessible, int device)
    : published_(published),
      index_(ref.index),
      ranges_(std::move(ranges)),
      accessible_(accessible),
      device_(device) {}

bool any_contains(std::span<const Range> ranges, std::uint64_t address, std::uint64_t length) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), address,
                       [](std::uint64_t value, const Range& range) { return value < range.begin; });
  if (after == ranges.begin()) {
    return false;
  }
  const Range& range = *std::prev(after);
  return address <= range.end && length <= range.end - address;
}

Use::Use(std::shared_ptr<Entry> entry, std::uint64_t value, Holder holder)
    : entry_(std::move(entry)), holder_(holder) {
  if (entry_ == nullptr) {
    return;
  }
  if (holder_ == Holder::kDriver) {
    entry_->drivers_.fetch_add(1, std::memory_order_seq_cst);
  }
  // Counts first and checks second; close() kills first and reads the count second. In the single
  // total order of these four operations one side always sees the other.
  entry_->users_.fetch_add(1, std::memory_order_seq_cst);
  if ((value & 1) == 0 || entry_->published_.view().guard(entry_->index_) != value) {
    release();
  }
}

void Use::release() {
  if (entry_ != nullptr) {
    entry_->users_.fetch_sub(1, std::memory_order_seq_cst);
    if (holder_ == Holder::kDriver) {
      entry_->drivers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    entry_.reset();
  }
}

Ref Entries::open(std::vector<Range> ranges, bool accessible, int device) {
  for (const Range& range : ranges) {
    if (range.end < range.begin) {
      throw std::invalid_argument("an address range wraps around the address space");
    }
  }
  published_.require_owner();
  ranges = joined(std::move(ranges));
  const std::unique_lock lock(mutex_);
  const Ref ref =
      published_.open_guard(accessible ? std::span<const Range>(ranges) : std::span<const Range>());
  const auto entry =
      std::make_shared<Entry>(published_, ref, std::move(ranges), accessible, device);
  entries_.emplace(ref.index, entry);
  index_ranges(*entry);
  return ref;
}

void Entries::index_ranges(const Entry& entry) {
  if (entry.accessible_) {
    for (const Range& range : entry.ranges_) {
      accessible_.add(range, entry.index_);
    }
  }
}

void Entries::end() {
  std::int64_t none = 0;
  end_ns_.compare_exchange_strong(none, now_ns(), std::memory_order_acq_rel);
}

bool Entries::kill_and_drain(Ref ref, const std::shared_ptr<Entry>& entry) {
  {
    const std::unique_lock lock(mutex_);
    if (!published_.kill_guard(ref)) {
      return false;
    }
    for (const Range& range : entry->ranges_) {
      accessible_.remove(range, entry->index_);
    }
  }
  while (entry->users_.load(std::memory_order_seq_cst) != 0) {
    std::this_thread::yield();
    const bool of_driver =
        !entry->on_host() || entry->drivers_.load(std::memory_order_seq_cst) != 0;
    const std::int64_t end_ns = end_ns_.load(std::memory_order_acquire);
    if (of_driver && end_ns != 0 && now_ns() - end_ns >= kHungNs) {
      break;
    }
  }
  return true;
}

bool Entries::close(Ref ref) {
  const std::shared_ptr<Entry> entry = find(ref);
  if (entry == nullptr || !kill_and_drain(ref, entry)) {
    return false;
  }
  {
    const std::unique_lock lock(mutex_);
    entries_.erase(ref.index);
  }
  published_.free_guard(ref.index);
  return true;
}

std::uint64_t Entries::reopen(Ref ref) { return suspend(ref) ? resume(ref.index) : 0; }

bool Entries::suspend(Ref ref) {
  const std::shared_ptr<Entry> entry = find(ref);
  return entry != nullptr && kill_and_drain(ref, entry);
}

std::uint64_t Entries::resume(std::uint64_t index) {
  const std::unique_lock lock(mutex_);
  const Entry& entry = *entries_.at(index);
  const std::uint64_t value = published_.revive_guard(index);
  index_ranges(entry);
  return value;
}

std::shared_ptr<Entry> Entries::find(Ref ref) const {
  if (published_.inherited()) {
    return nullptr;
  }
  const std::shared_lock lock(mutex_);
  const auto found = entries_.find(ref.index);
  if (found == entries_.end() || !ref.named() || !published_.view().live(ref)) {
    return nullptr;
  }
  return found->second;
}

std::pair<std::shared_ptr<Entry>, std::uint64_t> Entries::find_holding(std::uint64_t address,
                                                                       std::uint64_t length) const {
  if (published_.inherited()) {
    return {nullptr, 0};
  }
  const std::shared_lock lock(mutex_);
  const std::uint64_t* index = accessible_.find(address, length);
  if (index == nullptr) {
    return {nullptr, 0};
  }
  return {entries_.at(*index), published_.view().guard(*index)};
}

}  // namespace ldd
