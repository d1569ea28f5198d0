#include "lanes/staged.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace ldd {

namespace {

constexpr std::size_t kAtOnce = 64;  // ranges, described at a time

// The next `bytes` from the cursor on.
std::vector<iovec> ranges_of(Cursor cursor, std::uint64_t bytes) {
  std::vector<iovec> ranges;
  std::array<iovec, kAtOnce> some{};
  while (bytes > 0) {
    const Cursor::Filled filled = cursor.fill(some, bytes);
    ranges.insert(ranges.end(), some.begin(),
                  some.begin() + static_cast<std::ptrdiff_t>(filled.pieces));
    cursor.advance(filled.bytes);
    bytes -= filled.bytes;
  }
  return ranges;
}

}  // namespace

void StagedMemory::start(const Place& place, const Cursor& from, Code fault) {
  staging = from.done() ? nullptr : place.staging;
  cursor = from;
  fault_ = fault;
  failure_ = {};
  parts.clear();
  if (staging != nullptr) {
    staging->begin(place.device, place.deadline_ns);
  }
}

void StagedMemory::fail(const Outcome& why) {
  if (failure_.ok()) {
    failure_ = why.code == Code::kLocalFault ? Outcome::failure(fault_, why.sys_errno) : why;
    failure_.moved_bytes = 0;
    staging->stop();
  }
}

bool StagedMemory::take(std::size_t& slot) {
  std::optional<std::size_t> found;
  const Outcome taken = staging->take(found);
  if (!taken.ok()) {
    fail(taken);
  }
  slot = found.value_or(0);
  return found.has_value();
}

bool StagedMemory::copy(const Part& part, Staged direction, BatchGuard& guard) {
  std::vector<Use> uses;
  const Outcome taken = guard.take(uses);
  if (!taken.ok()) {
    fail(taken);
    return false;
  }
  staging->copy(part.slot, direction, ranges_of(cursor, part.bytes), std::move(uses));
  cursor.advance(part.bytes);
  parts.push_back(part);
  return true;
}

bool StagedMemory::confirm(BatchGuard& guard) {
  std::vector<Use> uses;
  const Outcome taken = guard.take(uses);
  if (!taken.ok()) {
    fail(taken);
  }
  return taken.ok();
}

void Gathering::ahead(BatchGuard& guard) {
  Part part;
  while (active() && failure().ok() && !cursor.done() && take(part.slot)) {
    part.bytes = std::min<std::uint64_t>(cursor.left(), kStagingSlotBytes);
    copy(part, Staged::kGather, guard);
  }
}

Step Gathering::next(BatchGuard& guard, std::span<const std::byte>& chunk) {
  ahead(guard);
  if (failure().ok() && !parts.empty()) {
    const std::optional<Outcome> ended = staging->ended(parts.front().slot);
    if (!ended) {
      return Step::kWait;
    }
    if (!ended->ok()) {
      fail(*ended);
    }
  }
  if (!failure().ok()) {
    return Step::kFailed;
  }
  if (!parts.empty()) {
    chunk = staging->bytes(parts.front().slot).first(parts.front().bytes);
    return Step::kReady;
  }
  if (!cursor.done()) {
    return Step::kWait;
  }
  return confirm(guard) ? Step::kEnd : Step::kFailed;
}

void Gathering::sent() {
  staging->release(parts.front().slot);
  parts.erase(parts.begin());
}

void Scattering::begin(const Place& place, const Cursor& from, Code fault) {
  start(place, from, fault);
  filling_.reset();
}

void Scattering::settle() {
  std::erase_if(parts, [this](const Part& part) {
    const std::optional<Outcome> ended = staging->ended(part.slot);
    if (!ended) {
      return false;
    }
    if (!ended->ok()) {
      fail(*ended);
    }
    staging->release(part.slot);
    return true;
  });
}

Step Scattering::room(std::span<std::byte>& room) {
  settle();
  if (failure().ok() && !filling_) {
    Part part;
    if (take(part.slot)) {
      filling_ = part;
    }
  }
  if (!failure().ok()) {
    return parts.empty() ? Step::kFailed : Step::kWait;
  }
  if (!filling_) {
    return Step::kWait;
  }
  room = staging->bytes(filling_->slot).subspan(filling_->bytes);
  return Step::kReady;
}

void Scattering::received(std::size_t bytes, BatchGuard& guard) {
  filling_->bytes += bytes;
  if (filling_->bytes == kStagingSlotBytes || filling_->bytes == cursor.left()) {
    copy(*std::exchange(filling_, std::nullopt), Staged::kScatter, guard);
  }
}

Step Scattering::finish(BatchGuard& guard) {
  settle();
  if (!parts.empty()) {
    return Step::kWait;
  }
  return failure().ok() && confirm(guard) ? Step::kEnd : Step::kFailed;
}

}  // namespace ldd
