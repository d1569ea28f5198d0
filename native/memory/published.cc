#include "memory/published.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "memory/segment.h"

namespace ldd {

PublishedView::PublishedView(std::span<const std::byte> page, std::uint64_t incarnation) {
  if (page.size() < sizeof(PublishedHeader)) {
    throw std::invalid_argument("published page too small");
  }
  header_ = reinterpret_cast<const PublishedHeader*>(page.data());
  if (header_->magic != kPublishedMagic || header_->incarnation != incarnation) {
    throw std::invalid_argument("published page belongs to another instance");
  }
  guard_capacity_ = header_->guard_capacity;
  log_capacity_ = header_->log_capacity;
  const std::uint64_t room = page.size() - sizeof(PublishedHeader);
  if (guard_capacity_ > room / 8 || log_capacity_ > room - guard_capacity_ * 8) {
    throw std::invalid_argument("published page is inconsistent");
  }
  const std::byte* after = page.data() + sizeof(PublishedHeader);
  guards_ = reinterpret_cast<const std::atomic<std::uint64_t>*>(after);
  log_ = after + guard_capacity_ * 8;
}

std::uint64_t PublishedView::version() const {
  return header_->version.load(std::memory_order_acquire);
}

std::uint64_t PublishedView::guard(std::uint64_t index) const {
  // The fence orders the data that was read before this call before the guard's load.
  std::atomic_thread_fence(std::memory_order_acquire);
  // Sequentially consistent for Use (entries.cc); on x86 that costs nothing for a load.
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
    : guard_capacity_(guard_capacity), log_capacity_(std::min(log_capacity, kTailMask)) {
  const std::size_t size_bytes = sizeof(PublishedHeader) + guard_capacity_ * 8 + log_capacity_;
  fd_ = make_sealed_memory("llm_datadist-directory", size_bytes);
  mapping_ = MappedRegion::of_file(fd_.get(), size_bytes, true);
  auto* fresh = std::construct_at(reinterpret_cast<PublishedHeader*>(mapping_.data()));
  fresh->magic = kPublishedMagic;
  fresh->incarnation = incarnation;
  fresh->guard_capacity = guard_capacity_;
  fresh->log_capacity = log_capacity_;
  view_ = PublishedView(mapping_.bytes(), incarnation);
}

PublishedHeader& Published::header() const {
  return *reinterpret_cast<PublishedHeader*>(mapping_.data());
}

std::atomic<std::uint64_t>& Published::guard_word(std::uint64_t index) const {
  if (index >= guard_capacity_) {
    throw std::out_of_range("guard index");
  }
  auto* words =
      reinterpret_cast<std::atomic<std::uint64_t>*>(mapping_.data() + sizeof(PublishedHeader));
  return words[index];
}

std::byte* Published::log() const {
  return mapping_.data() + sizeof(PublishedHeader) + guard_capacity_ * 8;
}

// Before any lock: in a child it may be held for ever by a thread that does not exist there.
void Published::require_owner() const {
  if (inherited()) {
    throw std::logic_error(
        "the instance belongs to the process that made it, not to a forked child");
  }
}

Ref Published::open_guard() {
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
  return {index, guard_word(index).fetch_add(1, std::memory_order_seq_cst) + 1};
}

bool Published::kill_guard(Ref ref) {
  std::uint64_t expected = ref.value;
  if ((expected & 1) == 0 || inherited() ||
      !guard_word(ref.index).compare_exchange_strong(expected, ref.value + 1,
                                                     std::memory_order_seq_cst)) {
    return false;
  }
  // What the caller writes to the memory from now on is seen by peers only after the guard's death.
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
