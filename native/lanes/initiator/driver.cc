#include "lanes/initiator/driver.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/interrupt.h"
#include "copy/pool.h"

namespace ldd {

namespace {

constexpr std::int64_t kStopWaitNs = 80'000'000;
// Of a call's time, at most, how much is kept for that wait; and how late the call may be by it.
constexpr std::int64_t kReserveShare = 10;
constexpr std::int64_t kReserveNs = 40'000'000;
constexpr std::int64_t kLateNs = 40'000'000;
constexpr int kLongestPollMs = 60'000;
constexpr int kHelperPollMs = 50;
// A round trip is over sooner than a core that has gone to sleep wakes up again.
constexpr std::int64_t kSpinNs = 100'000;

struct Active {
  LaneSet::Lane lane;
  std::unique_ptr<Exchange> exchange;
};

}  // namespace

std::int64_t give_up_ns(std::int64_t deadline_ns) {
  const std::int64_t left_ns = std::max<std::int64_t>(deadline_ns - now_ns(), 0);
  return deadline_ns - std::min(left_ns / kReserveShare, kReserveNs);
}

class Drive::Driver {
 public:
  Driver(LaneSet& lanes, Parts& parts, const DrivePlan& plan)
      : lanes_(lanes),
        parts_(parts),
        plan_(plan),
        end_ns_(plan.target_acts ? plan.give_up_ns : plan.deadline_ns) {}
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  ~Driver() { abandon(); }

  void begin() {
    std::vector<LaneSet::Lane> taken;
    failure_ = lanes_.take(plan_.lanes, plan_.deadline_ns, taken);
    begin(taken);
  }

  // Begins on lanes that are free now, if there are any.
  void begin_if_free() {
    std::vector<LaneSet::Lane> taken;
    if (lanes_.take(plan_.lanes, 0, taken).ok()) {
      begin(taken);
    }
  }

  Outcome finish() {
    while (!active_.empty() && wait()) {
      step_all();
    }
    abandon();
    failure_.moved_bytes = moved_bytes_;
    return failure_;
  }

  [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
  void begin(std::vector<LaneSet::Lane>& taken) {
    for (LaneSet::Lane& lane : taken) {
      start(std::move(lane));
    }
    step_all();
  }

  void start(LaneSet::Lane lane) {
    std::unique_ptr<Exchange> exchange = failure_.ok() ? parts_.next(*lane) : nullptr;
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

  void fail(const Outcome& why) {
    if (failure_.ok()) {
      failure_ = why;
    }
  }

  void step_all() {
    busy_ = false;
    for (std::size_t i = 0; i < active_.size();) {
      const Flow flow = active_[i].exchange->step();
      if (flow == Flow::kWait || flow == Flow::kGoOn) {
        busy_ = busy_ || flow == Flow::kGoOn;
        ++i;
        continue;
      }
      Active done = std::move(active_[i]);
      active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
      moved_bytes_ += done.exchange->moved_bytes();
      if (flow == Flow::kEnd) {
        const Outcome outcome = done.exchange->outcome();
        value_ = done.exchange->value();
        if (!outcome.ok()) {
          fail(outcome);
        }
        done.exchange.reset();
        start(std::move(done.lane));
      } else {
        fail(Outcome::failure(flow == Flow::kBroken ? Code::kPeerDead : Code::kProtocol));
        lanes_.discard(std::move(done.lane));
      }
    }
  }

  // False when the operation has to end now.
  bool wait() {
    polled_.clear();
    for (const Active& each : active_) {
      polled_.push_back({each.exchange->fd(), each.exchange->events(), 0});
    }
    polled_.push_back({lanes_.wake_fd(), POLLIN, 0});
    bool signaled = false;
    if (busy_ || !spin()) {
      signaled = ::poll(polled_.data(), polled_.size(), busy_ ? 0 : longest_wait_ms()) < 0;
    }
    if (interrupted(signaled)) {
      fail(Outcome::failure(Code::kCancelled));
      return false;
    }
    const Outcome state = lanes_.open();
    if (!state.ok()) {
      fail(state);
      return false;
    }
    if (now_ns() >= end_ns_) {
      fail(Outcome::failure(Code::kTimeout));
      return false;
    }
    return true;
  }

  [[nodiscard]] int longest_wait_ms() const {
    const bool helped = plan_.interrupted != nullptr;
    return remaining_ms(Interruptible::wake_ns(end_ns_), helped ? kHelperPollMs : kLongestPollMs);
  }

  // Whether the caller wants the operation to end, on whichever of its threads this is.
  bool interrupted(bool signaled) {
    const bool ends = Interruptible::due(signaled) && lanes_.interrupted();
    if (plan_.interrupted == nullptr) {
      return ends;
    }
    if (ends) {
      plan_.interrupted->store(true);
    }
    return plan_.interrupted->load(std::memory_order_relaxed);
  }

  // Looks again and again, for a moment in all, where one lane carries the whole operation; whether
  // something has come. Whoever else wants the core gets it.
  bool spin() {
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

  // Gives up on what is still running. The target sees the end of the stream, stops, and closes;
  // one that is frozen sees the reset, or the deadline, before it would touch anything.
  void abandon() {
    polled_.clear();
    for (const Active& each : active_) {
      moved_bytes_ += each.exchange->moved_bytes();
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
    for (Active& each : active_) {
      each.exchange->socket().reset_at_end();
      each.exchange.reset();
      lanes_.discard(std::move(each.lane));
    }
    active_.clear();
  }

  // Drops what has come; true at the end of the stream.
  static bool drained(int fd) {
    std::array<std::byte, 4096> nowhere;
    for (;;) {
      iovec piece{nowhere.data(), nowhere.size()};
      const ssize_t got = receive_pieces(fd, {&piece, 1});
      if (got < 0) {
        return got != -EAGAIN;
      }
    }
  }

  LaneSet& lanes_;
  Parts& parts_;
  DrivePlan plan_;
  std::int64_t end_ns_;
  std::vector<Active> active_;
  std::vector<pollfd> polled_;
  Outcome failure_;
  bool busy_ = false;  // some lane can go on without waiting
  std::int64_t spin_until_ns_ = 0;
  std::uint64_t moved_bytes_ = 0;
  std::uint64_t value_ = 0;
};

// Parts for several drivers; there are none after one of them has failed.
class Drive::SharedParts : public Parts {
 public:
  explicit SharedParts(Parts& parts) : parts_(parts) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    const std::lock_guard lock(mutex_);
    return failed_ ? nullptr : parts_.next(lane);
  }
  void fail() {
    const std::lock_guard lock(mutex_);
    failed_ = true;
  }

 private:
  std::mutex mutex_;
  Parts& parts_;
  bool failed_ = false;
};

// The first of the drivers answers for all parts; the others only help, with lanes that nobody
// uses.
Outcome Drive::on_threads(LaneSet& lanes, Parts& parts, const DrivePlan& plan) {
  SharedParts shared(parts);
  std::atomic<bool> interrupted{false};
  DrivePlan share = plan;
  share.interrupted = &interrupted;
  share.lanes = (plan.lanes + plan.threads - 1) / plan.threads;
  return CopyPool::instance().run(plan.threads, [&](std::size_t place) {
    Outcome outcome;
    try {
      // The caller's operation may pause while the helper's goes on.
      std::optional<LaneSet::Operation> helping;
      if (!Interruptible::here()) {
        helping.emplace(lanes);
      }
      Driver driver(lanes, shared, share);
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

Drive::Drive(LaneSet& lanes, Parts& parts, const DrivePlan& plan)
    : driver_(std::make_unique<Driver>(lanes, parts, plan)) {
  driver_->begin();
}

Drive::~Drive() = default;

Outcome Drive::finish() { return driver_->finish(); }

Outcome drive(LaneSet& lanes, Parts& parts, const DrivePlan& plan, std::uint64_t* value) {
  if (plan.threads > 1 && plan.lanes > 1) {
    return Drive::on_threads(lanes, parts, plan);
  }
  Drive::Driver driver(lanes, parts, plan);
  driver.begin();
  const Outcome outcome = driver.finish();
  if (value != nullptr) {
    *value = driver.value();
  }
  return outcome;
}

}  // namespace ldd
