#include "lanes/initiator/lane_set.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "base/clock.h"
#include "base/interrupt.h"

namespace ldd {

LaneSet::LaneSet(std::shared_ptr<Node> node) : node_(std::move(node)) {}

void LaneSet::add(Lane lane) {
  const std::lock_guard lock(mutex_);
  if (closing_.load() || mark_.inherited()) {
    throw std::system_error(ESHUTDOWN, std::generic_category(), "the lanes are closed");
  }
  if (clock_ == nullptr) {
    clock_ = lane->clock;
  } else {
    clock_->learn(lane->clock->offset_ns());
    lane->clock = clock_;
  }
  free_.push_back(std::move(lane));
  ++open_;
  changed_.notify_one();
}

std::size_t LaneSet::count() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

std::size_t LaneSet::prune() {
  if (mark_.inherited()) {
    return 0;
  }
  const std::lock_guard lock(mutex_);
  const std::size_t dead =
      std::erase_if(free_, [](const Lane& lane) { return lane->socket.hung_up(); });
  if (dead > 0) {
    open_ -= dead;
    changed_.notify_all();
  }
  return open_;
}

void LaneSet::add_free(std::vector<pollfd>& polled) const {
  if (mark_.inherited()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  for (const Lane& lane : free_) {
    for (const pollfd& each : lane->socket.hang_up_polls()) {
      polled.push_back(each);
    }
  }
}

LaneSet::Operation::Operation(LaneSet& lanes) : lanes_(lanes) {
  const std::lock_guard lock(lanes_.mutex_);
  ++lanes_.operations_;
}

LaneSet::Operation::~Operation() {
  const std::lock_guard lock(lanes_.mutex_);
  --lanes_.operations_;
  lanes_.changed_.notify_all();
}

LaneSet::Pause::Pause(LaneSet& lanes) : lanes_(lanes) {
  const std::lock_guard lock(lanes_.mutex_);
  --lanes_.operations_;
  lanes_.changed_.notify_all();
}

LaneSet::Pause::~Pause() {
  const std::lock_guard lock(lanes_.mutex_);
  ++lanes_.operations_;
}

LaneSet::Alarm::Alarm() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void LaneSet::Alarm::ring() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(fd_.get(), &one, sizeof one);
}

bool LaneSet::Alarm::take() const {
  std::uint64_t count = 0;
  return ::read(fd_.get(), &count, sizeof count) > 0;
}

LaneSet::Watch::Watch(LaneSet& lanes, const Alarm& alarm) : lanes_(lanes), alarm_(alarm) {
  const std::lock_guard lock(lanes_.mutex_);
  lanes_.alarms_.push_back(&alarm_);
  if (lanes_.closing_.load()) {
    alarm_.ring();
  }
}

LaneSet::Watch::~Watch() {
  const std::lock_guard lock(lanes_.mutex_);
  std::erase(lanes_.alarms_, &alarm_);
}

bool LaneSet::interrupted() {
  const Pause pause(*this);
  return Interruptible::ask();
}

Outcome LaneSet::open() const {
  if (node_->closed()) {
    return Outcome::failure(Code::kClosed);
  }
  return closing_.load() || mark_.inherited() ? Outcome::failure(Code::kCancelled) : Outcome{};
}

Outcome LaneSet::take(std::size_t wanted, std::int64_t deadline_ns, std::vector<Lane>& taken) {
  using Moment = std::chrono::steady_clock::time_point;
  std::unique_lock lock(mutex_);
  for (;;) {
    const Outcome state = open();
    if (!state.ok()) {
      return state;
    }
    while (!free_.empty() && taken.size() < wanted) {
      Lane lane = std::move(free_.back());
      free_.pop_back();
      if (lane->socket.hung_up()) {
        --open_;  // it failed while it was free
      } else {
        taken.push_back(std::move(lane));
      }
    }
    if (!taken.empty()) {
      return {};
    }
    if (open_ == 0) {
      return Outcome::failure(Code::kNoLane);
    }
    want_more();
    const Moment wake{std::chrono::nanoseconds(Interruptible::wake_ns(deadline_ns))};
    if (changed_.wait_until(lock, wake) == std::cv_status::no_timeout || !free_.empty()) {
      continue;
    }
    if (now_ns() >= deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    if (Interruptible::due(false)) {
      lock.unlock();
      if (interrupted()) {
        return Outcome::failure(Code::kCancelled);
      }
      lock.lock();
    }
  }
}

void LaneSet::give_back(Lane lane) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(lane));
  changed_.notify_one();
}

void LaneSet::discard(Lane lane) {
  lane.reset();
  const std::lock_guard lock(mutex_);
  --open_;
  changed_.notify_all();
}

void LaneSet::close() {
  if (mark_.inherited()) {
    return;  // its threads are in the parent, and perhaps one holds the lock
  }
  closing_.store(true);
  std::unique_lock lock(mutex_);
  for (const Alarm* alarm : alarms_) {
    alarm->ring();
  }
  changed_.notify_all();
  changed_.wait(lock, [this] { return operations_ == 0; });
  open_ -= free_.size();
  free_.clear();
}

}  // namespace ldd
