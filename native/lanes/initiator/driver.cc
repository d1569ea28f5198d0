#include "lanes/initiator/driver.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/interrupt.h"
#include "copy/pool.h"

namespace ldd {

namespace {

constexpr std::int64_t kStopWaitNs = 80'000'000;
// How much of a call's time is reserved for that wait, at most, and how late the call may be.
constexpr std::int64_t kReserveShare = 10;
constexpr std::int64_t kReserveNs = 40'000'000;
constexpr std::int64_t kLateNs = 40'000'000;
constexpr int kLongestPollMs = 60'000;
constexpr int kLookMs = 50;
// A round trip takes less time than a core needs to wake up.
constexpr std::int64_t kSpinNs = 100'000;

// Discards received bytes; true at the end of the stream.
bool drained(int fd) {
  std::array<std::byte, 4096> discarded;
  for (;;) {
    iovec piece{discarded.data(), discarded.size()};
    const ssize_t got = receive_pieces(fd, {&piece, 1});
    if (got < 0) {
      return got != -EAGAIN;
    }
  }
}

// Requests for several drivers; none are left once one of them has failed.
class SharedRequestSource : public RequestSource {
 public:
  explicit SharedRequestSource(RequestSource& requests) : requests_(requests) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    const std::lock_guard lock(mutex_);
    return failed_ ? nullptr : requests_.next(lane);
  }
  Outcome answered(ClientLane& lane) override { return requests_.answered(lane); }
  void fail() {
    const std::lock_guard lock(mutex_);
    failed_ = true;
  }

 private:
  std::mutex mutex_;
  RequestSource& requests_;
  bool failed_ = false;
};

// The first driver is responsible for all requests; the others help with lanes that are free.
Outcome run_on_threads(LaneSet& lanes, RequestSource& requests, const OperationPlan& plan) {
  SharedRequestSource shared(requests);
  std::atomic<bool> interrupted{false};
  OperationPlan share = plan;
  share.interrupted = &interrupted;
  share.lanes = (plan.lanes + plan.threads - 1) / plan.threads;
  return CopyPool::instance().run(plan.threads, [&](std::size_t place) {
    Outcome outcome;
    try {
      // The caller's operation may pause while the helper's goes on.
      std::optional<LaneSet::Operation> helping;
      if (!Interruptible::active()) {
        helping.emplace(lanes);
      }
      OperationDriver driver(lanes, shared, share);
      if (place == 0) {
        driver.begin();
      } else {
        driver.begin_if_free();
      }
      outcome = driver.finish();
    } catch (const std::bad_alloc&) {
      outcome = Outcome::failure(Code::kSystem, ENOMEM);
    }
    if (!outcome.ok()) {
      shared.fail();
    }
    return outcome;
  });
}

}  // namespace

std::int64_t give_up_ns(std::int64_t deadline_ns) {
  const std::int64_t left_ns = std::max<std::int64_t>(deadline_ns - now_ns(), 0);
  return deadline_ns - std::min(left_ns / kReserveShare, kReserveNs);
}

Outcome run_operation(LaneSet& lanes, RequestSource& requests, const OperationPlan& plan,
                      std::uint64_t* value) {
  if (plan.threads > 1 && plan.lanes > 1) {
    return run_on_threads(lanes, requests, plan);
  }
  OperationDriver driver(lanes, requests, plan);
  driver.begin();
  const Outcome outcome = driver.finish();
  if (value != nullptr) {
    *value = driver.value();
  }
  return outcome;
}

OperationDriver::OperationDriver(LaneSet& lanes, RequestSource& requests, const OperationPlan& plan)
    : lanes_(lanes),
      requests_(requests),
      plan_(plan),
      end_ns_(plan.target_acts ? plan.give_up_ns : plan.deadline_ns) {}

void OperationDriver::begin() {
  std::vector<LaneSet::Lane> taken;
  failure_ = lanes_.take(plan_.lanes, plan_.deadline_ns, taken);
  begin_on(taken);
}

void OperationDriver::begin_if_free() {
  std::vector<LaneSet::Lane> taken;
  if (lanes_.take(plan_.lanes, 0, taken).ok()) {
    begin_on(taken);
  }
}

void OperationDriver::begin_on(std::vector<LaneSet::Lane>& taken) {
  for (LaneSet::Lane& lane : taken) {
    start_next(std::move(lane));
  }
  step_all();
}

Outcome OperationDriver::finish() {
  while (!active_.empty() && wait()) {
    step_all();
  }
  sleep_.reset();
  abandon();
  failure_.moved_bytes = moved_bytes_;
  return failure_;
}

// Starts the next request on the lane, or gives the lane back.
void OperationDriver::start_next(LaneSet::Lane lane) {
  std::unique_ptr<Exchange> exchange = failure_.ok() ? requests_.next(*lane) : nullptr;
  if (exchange != nullptr && now_ns() >= end_ns_) {
    exchange.reset();  // nothing of it has been sent
    fail(Outcome::failure(Code::kTimeout));
  }
  if (exchange == nullptr) {
    lanes_.give_back(std::move(lane));
  } else {
    active_.push_back({std::move(lane), std::move(exchange)});
  }
}

void OperationDriver::fail(const Outcome& why) {
  if (failure_.ok()) {
    failure_ = why;
  }
}

void OperationDriver::step_all() {
  busy_ = false;
  for (std::size_t i = 0; i < active_.size();) {
    const Flow flow = active_[i].exchange->step();
    if (flow == Flow::kWait || flow == Flow::kStaging || flow == Flow::kGoOn) {
      busy_ = busy_ || flow == Flow::kGoOn;
      ++i;
      continue;
    }
    Active done = std::move(active_[i]);
    active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
    moved_bytes_ += done.exchange->moved_bytes();
    if (flow == Flow::kEnd) {
      lanes_.answered();
      Outcome outcome = done.exchange->outcome();
      value_ = done.exchange->value();
      if (outcome.ok()) {
        outcome = requests_.answered(*done.lane);
        moved_bytes_ += outcome.moved_bytes;
      }
      if (!outcome.ok()) {
        fail(outcome);
      }
      done.exchange.reset();
      start_next(std::move(done.lane));
    } else {
      fail(Outcome::failure(flow == Flow::kBroken ? Code::kPeerDead : Code::kProtocol));
      lanes_.discard(std::move(done.lane));
    }
  }
}

// Waits until some lane can go on; false when the operation must end now.
bool OperationDriver::wait() {
  polled_.clear();
  for (const Active& each : active_) {
    polled_.push_back(each.exchange->awaited());
  }
  bool signaled = false;
  if (busy_) {
    signaled = ::poll(polled_.data(), polled_.size(), 0) < 0;
  } else if (!spin()) {
    if (!sleep_) {
      sleep_.emplace(lanes_);
    }
    polled_.push_back({sleep_->alarm.fd(), POLLIN, 0});
    signaled = ::poll(polled_.data(), polled_.size(), longest_wait_ms()) < 0;
  }
  if (interrupted(signaled)) {
    fail(Outcome::failure(Code::kCancelled));
    return false;
  }
  const Outcome state = lanes_.open();
  if (!state.ok()) {
    if (plan_.target_acts) {
      step_all();  // what the target has done counts if its answer is here
    }
    if (!active_.empty()) {
      fail(state);
    }
    return false;
  }
  if (now_ns() >= end_ns_) {
    fail(Outcome::failure(Code::kTimeout));
    return false;
  }
  return true;
}

// Polls repeatedly for a short time in total, if one lane carries the whole operation; true when
// something has come. Yields the core to other threads.
bool OperationDriver::spin() {
  if (plan_.lanes > 1) {
    return false;
  }
  const std::int64_t now = now_ns();
  spin_until_ns_ = spin_until_ns_ == 0 ? now + kSpinNs : spin_until_ns_;
  for (std::int64_t at = now; at < std::min(spin_until_ns_, end_ns_); at = now_ns()) {
    if (::poll(polled_.data(), polled_.size(), 0) != 0) {
      return true;
    }
    std::this_thread::yield();
  }
  return false;
}

int OperationDriver::longest_wait_ms() const {
  const bool looks = plan_.interrupted != nullptr || sleep_->alarm.fd() < 0;
  return remaining_ms(Interruptible::wake_ns(end_ns_), looks ? kLookMs : kLongestPollMs);
}

// Whether the caller has interrupted the operation, on whichever of its threads this is.
bool OperationDriver::interrupted(bool signaled) {
  const bool ends = Interruptible::due(signaled) && lanes_.interrupted();
  if (plan_.interrupted == nullptr) {
    return ends;
  }
  if (ends) {
    plan_.interrupted->store(true);
  }
  return plan_.interrupted->load(std::memory_order_relaxed);
}

// Gives up what is still running. The target sees the end of the stream, stops, and closes. A
// frozen target sees the reset, or the deadline, before it accesses anything.
void OperationDriver::abandon() {
  polled_.clear();
  for (const Active& each : active_) {
    moved_bytes_ += each.exchange->moved_bytes();
    each.exchange->stop_copies();
    if (plan_.target_acts) {
      each.exchange->socket().stop_sending();
      polled_.push_back({each.exchange->fd(), POLLIN | POLLRDHUP, 0});
    }
  }
  const std::int64_t until_ns = std::min(now_ns() + kStopWaitNs, plan_.deadline_ns + kLateNs);
  while (std::any_of(polled_.begin(), polled_.end(),
                     [](const pollfd& each) { return each.fd >= 0; })) {
    const int timeout_ms = remaining_ms(until_ns, kLongestPollMs);
    if (timeout_ms == 0 || ::poll(polled_.data(), polled_.size(), timeout_ms) == 0) {
      break;
    }
    for (pollfd& each : polled_) {
      if (each.fd >= 0 && each.revents != 0 && drained(each.fd)) {
        each.fd = -1;
      }
    }
  }
  const std::int64_t drained_ns = now_ns() + kDrainNs;
  for (Active& each : active_) {
    each.exchange->drain_copies(drained_ns);
    each.exchange->socket().reset_at_end();
    each.exchange.reset();
    lanes_.discard(std::move(each.lane));
  }
  active_.clear();
}

}  // namespace ldd
