#include "lanes/target/rights.h"

#include <algorithm>
#include <cerrno>
#include <unordered_map>

#include "base/clock.h"

namespace ldd {

namespace {

// A peer may name any value. An even one would match a dead guard, between the close of an entry
// and the end of its last use.
bool may_be_live(Ref ref) { return (ref.value & 1) != 0; }

}  // namespace

Outcome Rights::check(Node& node, const wire::Request& request, std::int64_t deadline_ns,
                      Access access, std::span<const std::uint64_t> addresses,
                      std::span<const std::uint64_t> lengths) {
  reset();
  node_ = &node;
  deadline_ns_ = deadline_ns;
  key_ = access == Access::kDoorbell ? Ref{} : Ref{request.key_index, request.key_value};
  if (now_ns() >= deadline_ns) {
    return Outcome::failure(Code::kTimeout);
  }
  if (request.version != 0 && request.version != node.view().version()) {
    return Outcome::failure(Code::kStale);
  }
  if (!key_live() || (key_.named() && !may_be_live(key_))) {
    return Outcome::failure(Code::kGone);
  }
  const Ref cache{request.cache_index, request.cache_value};
  const Outcome outcome = cache.index == kAnyEntry ? check_any(addresses, lengths)
                                                   : check_named(cache, addresses, lengths);
  if (outcome.ok() && !reachable(access)) {
    return Outcome::failure(Code::kSystem, EOPNOTSUPP);
  }
  return outcome;
}

Outcome Rights::check_named(Ref cache, std::span<const std::uint64_t> addresses,
                            std::span<const std::uint64_t> lengths) {
  std::shared_ptr<Entry> entry = may_be_live(cache) ? node_->entries().find(cache) : nullptr;
  if (entry == nullptr) {
    return Outcome::failure(Code::kGone);
  }
  if (!entry->accessible()) {
    return Outcome::failure(Code::kDenied);
  }
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    if (!entry->contains(addresses[i], lengths[i])) {
      return Outcome::failure(Code::kDenied, 0, static_cast<std::int64_t>(i));
    }
  }
  entries_.emplace_back(std::move(entry), cache.value);
  return {};
}

Outcome Rights::check_any(std::span<const std::uint64_t> addresses,
                          std::span<const std::uint64_t> lengths) {
  holders_.reserve(addresses.size());
  std::unordered_map<const Entry*, std::uint32_t> places;
  std::uint32_t last = 0;  // consecutive descriptors mostly lie in one entry
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    if (entries_.empty() || !entries_[last].first->contains(addresses[i], lengths[i])) {
      auto held = node_->entries().find_holding(addresses[i], lengths[i]);
      if (held.first == nullptr) {
        return Outcome::failure(Code::kDenied, 0, static_cast<std::int64_t>(i));
      }
      const auto place = static_cast<std::uint32_t>(entries_.size());
      const auto [known, added] = places.try_emplace(held.first.get(), place);
      last = known->second;
      if (added) {
        entries_.push_back(std::move(held));
      }
    }
    holders_.push_back(last);
  }
  return {};
}

bool Rights::reachable(Access access) const {
  if (access == Access::kDoorbell) {
    return true;
  }
  const int wanted = access == Access::kTouch ? kHostMemory : device();
  return std::all_of(entries_.begin(), entries_.end(),
                     [&](const auto& held) { return held.first->device() == wanted; });
}

Outcome Rights::take(std::vector<Use>& uses) const {
  if (now_ns() >= deadline_ns_) {
    return Outcome::failure(Code::kTimeout);
  }
  if (!key_live()) {
    return Outcome::failure(Code::kGone);
  }
  for (const auto& [entry, value] : entries_) {
    if (!uses.emplace_back(entry, value)) {
      return Outcome::failure(Code::kGone);
    }
  }
  return {};
}

void Rights::reset() {
  entries_.clear();
  holders_.clear();
  key_ = {};
}

}  // namespace ldd
