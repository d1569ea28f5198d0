#include "memory/published.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "memory/exports.h"
#include "memory/segment.h"

namespace ldd {

namespace {

constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr std::uint64_t kGuardBytes = 3 * kWord;  // the guard's word and two facts
constexpr std::uint64_t kRangeBytes = 2 * kWord;
constexpr std::uint64_t kRangesPerGuard = 2;

constexpr std::uint64_t kExportBytes = kExportWords * kWord * kExportCapacity;

using Word = std::atomic<std::uint64_t>;

}  // namespace

PublishedView::PublishedView(std::span<const std::byte> page, std::uint64_t incarnation) {
  if (page.size() < sizeof(PublishedHeader)) {
    throw std::invalid_argument("published page too small");
  }
  header_ = reinterpret_cast<const PublishedHeader*>(page.data());
  if (header_->magic != kPublishedMagic || header_->incarnation != incarnation) {
    throw std::invalid_argument("published page belongs to another instance");
  }
  guard_capacity_ = header_->guard_capacity;
  range_capacity_ = header_->range_capacity;
  log_capacity_ = header_->log_capacity;
  std::uint64_t room = page.size() - sizeof(PublishedHeader);
  const bool guards_fit = guard_capacity_ <= room / kGuardBytes;
  room -= guards_fit ? guard_capacity_ * kGuardBytes : 0;
  const bool ranges_fit = range_capacity_ <= room / kRangeBytes;
  room -= ranges_fit ? range_capacity_ * kRangeBytes : 0;
  const bool exports_fit = kExportBytes <= room;
  room -= exports_fit ? kExportBytes : 0;
  if (!guards_fit || !ranges_fit || !exports_fit || log_capacity_ > room) {
    throw std::invalid_argument("published page is inconsistent");
  }
  guards_ = reinterpret_cast<const Word*>(page.data() + sizeof(PublishedHeader));
  facts_ = guards_ + guard_capacity_;
  ranges_ = facts_ + 2 * guard_capacity_;
  exports_ = ranges_ + 2 * range_capacity_;
  log_ = reinterpret_cast<const std::byte*>(exports_ + kExportWords * kExportCapacity);
}

std::vector<Range> PublishedView::ranges(Ref entry) const {
  if (!entry.named() || !live(entry)) {
    return {};
  }
  const std::uint64_t first = facts_[2 * entry.index].load(std::memory_order_relaxed);
  const std::uint64_t count = facts_[2 * entry.index + 1].load(std::memory_order_relaxed);
  if (first > range_capacity_ || count > range_capacity_ - first || count > kMostRanges) {
    return {};
  }
  std::vector<Range> found;
  found.reserve(count);
  for (std::uint64_t i = first; i < first + count; ++i) {
    found.push_back({ranges_[2 * i].load(std::memory_order_relaxed),
                     ranges_[2 * i + 1].load(std::memory_order_relaxed)});
    const bool rises = found.size() < 2 || found[found.size() - 2].end < found.back().begin;
    if (found.back().end < found.back().begin || !rises) {
      return {};
    }
  }
  return live(entry) ? found : std::vector<Range>{};
}

std::optional<std::uint64_t> PublishedView::proof_offset(std::uint64_t index) const {
  if (index >= guard_capacity_) {
    return std::nullopt;
  }
  return sizeof(PublishedHeader) + (guard_capacity_ + 2 * index) * kWord;
}

std::uint64_t PublishedView::version() const {
  return header_->version.load(std::memory_order_acquire);
}

std::uint64_t PublishedView::guard(std::uint64_t index) const {
  // The fence orders reads of data before this call before the load of the guard.
  std::atomic_thread_fence(std::memory_order_acquire);
  // Sequentially consistent for Use (memory/entries.cc); on x86 that costs nothing for a load.
  return index < guard_capacity_ ? guards_[index].load(std::memory_order_seq_cst) : 0;
}

std::vector<std::byte> PublishedView::read_log(std::uint64_t offset, std::uint64_t size) const {
  const std::uint64_t begin = std::min(offset, log_capacity_);
  const std::uint64_t count = std::min(size, log_capacity_ - begin);
  std::vector<std::byte> bytes(count);
  if (count != 0) {
    std::memcpy(bytes.data(), log_ + begin, count);
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  return bytes;
}

Published::Published(std::uint64_t incarnation, std::uint64_t guard_capacity,
                     std::uint64_t log_capacity)
    : guard_capacity_(guard_capacity),
      range_capacity_(kRangesPerGuard * guard_capacity),
      log_capacity_(std::min(log_capacity, kTailMask)) {
  const std::size_t size_bytes = sizeof(PublishedHeader) + guard_capacity_ * kGuardBytes +
                                 range_capacity_ * kRangeBytes + kExportBytes + log_capacity_;
  fd_ = make_sealed_memory("llm_datadist-directory", size_bytes);
  mapping_ = MappedRegion::of_file(fd_.get(), size_bytes, true);
  auto* fresh = std::construct_at(reinterpret_cast<PublishedHeader*>(mapping_.data()));
  fresh->magic = kPublishedMagic;
  fresh->incarnation = incarnation;
  fresh->guard_capacity = guard_capacity_;
  fresh->range_capacity = range_capacity_;
  fresh->log_capacity = log_capacity_;
  free_ranges_.emplace(0, range_capacity_);
  view_ = PublishedView(mapping_.bytes(), incarnation);
}

PublishedHeader& Published::header() const {
  return *reinterpret_cast<PublishedHeader*>(mapping_.data());
}

std::atomic<std::uint64_t>& Published::guard_word(std::uint64_t index) const {
  if (index >= guard_capacity_) {
    throw std::out_of_range("guard index");
  }
  return reinterpret_cast<Word*>(mapping_.data() + sizeof(PublishedHeader))[index];
}

std::span<Word> Published::facts(std::uint64_t index) const {
  Word* words = &guard_word(0) + guard_capacity_;
  return {words + 2 * index, 2};
}

Word* Published::range_words() const { return &guard_word(0) + 3 * guard_capacity_; }

Word* Published::export_words() const { return range_words() + 2 * range_capacity_; }

std::byte* Published::log() const {
  return reinterpret_cast<std::byte*>(export_words() + kExportWords * kExportCapacity);
}

// Called before taking any lock: in a child, a thread that does not exist there may hold it for
// ever.
void Published::require_owner() const {
  if (inherited()) {
    throw std::logic_error(
        "the instance belongs to the process that made it, not to a forked child");
  }
}

Ref Published::open_guard(std::span<const Range> ranges) {
  require_owner();
  const std::lock_guard lock(guards_mutex_);
  std::uint64_t index = 0;
  if (!free_guards_.empty()) {
    index = free_guards_.back();
    free_guards_.pop_back();
  } else if (next_guard_ < guard_capacity_) {
    index = next_guard_++;
  } else {
    throw std::length_error("all guards of the instance are in use");
  }
  list_ranges(index, ranges);
  return {index, guard_word(index).fetch_add(1, std::memory_order_seq_cst) + 1};
}

void Published::list_ranges(std::uint64_t index, std::span<const Range> ranges) {
  const std::optional<std::uint64_t> first = take_room(ranges.size());
  const std::uint64_t count = first ? ranges.size() : 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    range_words()[2 * (*first + i)].store(ranges[i].begin, std::memory_order_relaxed);
    range_words()[2 * (*first + i) + 1].store(ranges[i].end, std::memory_order_relaxed);
  }
  facts(index)[0].store(first.value_or(0), std::memory_order_relaxed);
  facts(index)[1].store(count, std::memory_order_relaxed);
  if (count != 0) {
    listed_.emplace(index, Listed{*first, count});
  }
}

std::optional<std::uint64_t> Published::take_room(std::uint64_t count) {
  if (count == 0 || count > kMostRanges) {
    return std::nullopt;
  }
  for (auto each = free_ranges_.begin(); each != free_ranges_.end(); ++each) {
    const auto [first, free_count] = *each;
    if (free_count >= count) {
      free_ranges_.erase(each);
      if (free_count > count) {
        free_ranges_.emplace(first + count, free_count - count);
      }
      return first;
    }
  }
  return std::nullopt;
}

void Published::give_room(Listed room) {
  const auto after = free_ranges_.upper_bound(room.first);
  if (after != free_ranges_.end() && after->first == room.first + room.count) {
    room.count += after->second;
    free_ranges_.erase(after);
  }
  const auto next = free_ranges_.upper_bound(room.first);
  if (next != free_ranges_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == room.first) {
      before->second += room.count;
      return;
    }
  }
  free_ranges_.emplace(room.first, room.count);
}

void Published::show_proof(Ref link, const Proof& proof) {
  require_owner();
  const std::lock_guard lock(guards_mutex_);
  if (!view_.live(link)) {
    throw std::invalid_argument("the link's guard is not open");
  }
  std::array<std::uint64_t, 2> words{};
  std::memcpy(words.data(), proof.data(), proof.size());
  facts(link.index)[0].store(words[0], std::memory_order_relaxed);
  facts(link.index)[1].store(words[1], std::memory_order_release);
}

void Published::bring_in() const {
  std::uint64_t used = 0;
  {
    const std::lock_guard lock(guards_mutex_);
    used = next_guard_;
  }
  constexpr std::uint64_t kFactsPerPage = 4096 / (2 * kWord);
  for (std::uint64_t index = 0; index < used; index += kFactsPerPage) {
    [[maybe_unused]] const auto word = facts(index)[0].load(std::memory_order_relaxed);
  }
  if (used != 0) {
    [[maybe_unused]] const auto word = facts(used - 1)[0].load(std::memory_order_relaxed);
  }
}

bool Published::kill_guard(Ref ref) {
  std::uint64_t expected = ref.value;
  if ((expected & 1) == 0 || inherited() ||
      !guard_word(ref.index).compare_exchange_strong(expected, ref.value + 1,
                                                     std::memory_order_seq_cst)) {
    return false;
  }
  // Peers see what the caller writes to the memory from now on only after the guard's death.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return true;
}

std::uint64_t Published::revive_guard(std::uint64_t index) {
  require_owner();
  return guard_word(index).fetch_add(1, std::memory_order_seq_cst) + 1;
}

void Published::free_guard(std::uint64_t index) {
  require_owner();
  const std::lock_guard lock(guards_mutex_);
  for (Word& fact : facts(index)) {
    fact.store(0, std::memory_order_relaxed);  // a proof is shown only while its link is live
  }
  const auto listed = listed_.find(index);
  if (listed != listed_.end()) {
    give_room(listed->second);
    listed_.erase(listed);
  }
  free_guards_.push_back(index);
}

void Published::append(std::span<const std::byte> record) {
  require_owner();
  const std::lock_guard lock(log_mutex_);
  auto& version = header().version;
  const std::uint64_t now = version.load(std::memory_order_relaxed);
  const std::uint64_t tail = now & kTailMask;
  if (record.size() > log_capacity_ - tail) {
    throw std::length_error("the directory log is full");
  }
  std::memcpy(log() + tail, record.data(), record.size());
  version.store(now + record.size(), std::memory_order_seq_cst);
}

void Published::rewrite(std::span<const std::byte> records) {
  require_owner();
  const std::lock_guard lock(log_mutex_);
  if (records.size() > log_capacity_) {
    throw std::length_error("the directory does not fit its log");
  }
  auto& version = header().version;
  const std::uint64_t era = version.load(std::memory_order_relaxed) >> kTailBits;
  version.store((era + 1) << kTailBits, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::memcpy(log(), records.data(), records.size());
  version.store(((era + 2) << kTailBits) | records.size(), std::memory_order_seq_cst);
}

}  // namespace ldd
