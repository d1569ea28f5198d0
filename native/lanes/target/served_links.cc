#include "lanes/target/served_links.h"

#include <algorithm>
#include <utility>

#include "lanes/target/served_lane.h"

namespace ldd {

bool ServedLinks::add(std::uint64_t link_id, std::shared_ptr<ServedLane> lane) {
  const std::lock_guard lock(mutex_);
  if (closed_) {
    return false;
  }
  Link& link = links_[link_id];
  link.lanes.push_back(std::move(lane));
  link.activity->lanes.fetch_add(1);
  return true;
}

std::size_t ServedLinks::first_turn() {
  static std::atomic<std::size_t> links{0};  // of all instances of the process
  return links.fetch_add(1);
}

std::size_t ServedLinks::next_turn(std::uint64_t link_id) {
  const std::lock_guard lock(mutex_);
  return closed_ ? 0 : links_[link_id].turn++;
}

void ServedLinks::remove(std::uint64_t link_id, const ServedLane* lane) {
  std::shared_ptr<ServedLane> last;  // destroyed outside the lock
  const std::lock_guard lock(mutex_);
  const auto link = links_.find(link_id);
  if (link == links_.end()) {
    return;
  }
  auto& lanes = link->second.lanes;
  const auto found = std::find_if(lanes.begin(), lanes.end(),
                                  [&](const auto& each) { return each.get() == lane; });
  if (found != lanes.end()) {
    last = std::move(*found);
    lanes.erase(found);
    link->second.activity->lanes.fetch_sub(1);
    lane_removed_.notify_all();
  }
}

std::shared_ptr<LinkActivity> ServedLinks::activity(std::uint64_t link_id) {
  const std::lock_guard lock(mutex_);
  return closed_ ? std::make_shared<LinkActivity>() : links_[link_id].activity;
}

void ServedLinks::attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host) {
  const std::lock_guard lock(mutex_);
  if (!closed_) {
    links_[link_id].host = std::move(host);
  }
}

void ServedLinks::attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing) {
  const std::lock_guard lock(mutex_);
  if (!closed_) {
    links_[link_id].landing = std::move(landing);
  }
}

std::shared_ptr<HostPeer> ServedLinks::source(std::uint64_t link_id, bool names_entry) const {
  const std::lock_guard lock(mutex_);
  const auto link = links_.find(link_id);
  if (link == links_.end()) {
    return nullptr;
  }
  const auto& host = link->second.host;
  const auto& landing = link->second.landing;
  const bool from_host = landing == nullptr || (names_entry && host != nullptr);
  return from_host ? host : landing;
}

void ServedLinks::offend(std::uint64_t link_id, bool strayed) {
  (strayed ? counts_.strayed_pushes : counts_.protocol_errors)
      .fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  const auto link = links_.find(link_id);
  if (link != links_.end()) {
    ++(strayed ? link->second.offences.strayed : link->second.offences.malformed);
    offended_.store(true);
  }
}

std::vector<Offences> ServedLinks::take_offences() {
  if (!offended_.exchange(false)) {
    return {};
  }
  std::vector<Offences> taken;
  const std::lock_guard lock(mutex_);
  for (auto& [link_id, link] : links_) {
    Offences found = std::exchange(link.offences, {});
    if (found.malformed + found.strayed != 0) {
      found.link_id = link_id;
      taken.push_back(found);
    }
  }
  return taken;
}

std::size_t ServedLinks::count(std::uint64_t link_id) const {
  const std::lock_guard lock(mutex_);
  const auto link = links_.find(link_id);
  return link == links_.end() ? 0 : link->second.lanes.size();
}

std::size_t ServedLinks::count() const {
  const std::lock_guard lock(mutex_);
  std::size_t sum = 0;
  for (const auto& [link_id, link] : links_) {
    sum += link.lanes.size();
  }
  return sum;
}

std::vector<std::shared_ptr<ServedLane>> ServedLinks::begin_drop(std::uint64_t link_id) {
  const std::lock_guard lock(mutex_);
  const auto link = links_.find(link_id);
  return link == links_.end() ? std::vector<std::shared_ptr<ServedLane>>() : link->second.lanes;
}

void ServedLinks::wait_dropped(std::uint64_t link_id) {
  std::unique_lock lock(mutex_);
  lane_removed_.wait(lock, [&] {
    const auto link = links_.find(link_id);
    return link == links_.end() || link->second.lanes.empty();
  });
  links_.erase(link_id);
}

std::vector<std::uint64_t> ServedLinks::begin_close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  std::vector<std::uint64_t> ids;
  ids.reserve(links_.size());
  for (const auto& [link_id, link] : links_) {
    ids.push_back(link_id);
  }
  return ids;
}

}  // namespace ldd
