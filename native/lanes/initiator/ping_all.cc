#include "lanes/initiator/ping_all.h"

#include <poll.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "lanes/initiator/exchange.h"

namespace ldd {

namespace {

constexpr int kLongestPollMs = 60'000;
constexpr int kLookMs = 50;
constexpr std::int64_t kAtOnce = 0;

class NoMemory : public BatchGuard {
 public:
  Outcome take(std::vector<Use>& /*uses*/) override { return {}; }
};

// A PING whose reply is awaited.
struct Ping {
  std::size_t place;
  LaneSet* link;
  std::unique_ptr<LaneSet::Operation> operation;
  std::unique_ptr<LaneSet::Watch> watch;
  LaneSet::Lane lane;
  std::unique_ptr<Exchange> exchange;
};

class PingRound {
 public:
  PingRound(std::span<LaneSet* const> links, std::int64_t deadline_ns)
      : deadline_ns_(deadline_ns), outcomes_(links.size()) {
    pings_.reserve(links.size());
    for (std::size_t i = 0; i < links.size(); ++i) {
      start(i, *links[i]);
    }
  }

  std::vector<Outcome> run() {
    while (!pings_.empty()) {
      wait();
      const bool over = now_ns() >= deadline_ns_;
      // The alarm does not say which link it is; without one, each wait is short.
      const bool looks = alarm_.fd() < 0 || alarm_.take();
      std::vector<Ping> left;
      for (std::size_t i = 0; i < pings_.size(); ++i) {
        if (!ended(pings_[i], polled_[i].revents != 0, looks, over)) {
          left.push_back(std::move(pings_[i]));
        }
      }
      pings_ = std::move(left);
    }
    return std::move(outcomes_);
  }

 private:
  void start(std::size_t place, LaneSet& link) {
    Ping ping{place, &link, std::make_unique<LaneSet::Operation>(link), nullptr, nullptr, nullptr};
    std::vector<LaneSet::Lane> taken;
    outcomes_[place] = link.take(1, kAtOnce, taken);
    if (!outcomes_[place].ok()) {
      return;
    }
    ping.watch = std::make_unique<LaneSet::Watch>(link, alarm_);
    ping.lane = std::move(taken.front());
    ping.exchange = std::make_unique<Exchange>(
        *ping.lane, LaneRequest{wire::Kind::kPing, {}, {}, 0, deadline_ns_}, Cursor{}, no_memory_);
    if (!stepped(ping)) {
      pings_.push_back(std::move(ping));
    }
  }

  void wait() {
    polled_.clear();
    for (const Ping& ping : pings_) {
      polled_.push_back(ping.exchange->awaited());
    }
    polled_.push_back({alarm_.fd(), POLLIN, 0});
    const int longest_ms = alarm_.fd() < 0 ? kLookMs : kLongestPollMs;
    ::poll(polled_.data(), polled_.size(), remaining_ms(deadline_ns_, longest_ms));
  }

  bool ended(Ping& ping, bool ready, bool looks, bool over) {
    if (ready && stepped(ping)) {
      return true;
    }
    const Outcome state = looks ? ping.link->open() : Outcome{};
    if (!state.ok() || over) {
      finish(ping, state.ok() ? Outcome::failure(Code::kTimeout) : state, false);
      return true;
    }
    return false;
  }

  // Whether it has ended.
  bool stepped(Ping& ping) {
    const Flow flow = ping.exchange->step();
    if (flow == Flow::kWait || flow == Flow::kGoOn) {
      return false;
    }
    if (flow == Flow::kEnd) {
      finish(ping, ping.exchange->outcome(), true);
    } else {
      const Code code = flow == Flow::kBroken ? Code::kPeerDead : Code::kProtocol;
      finish(ping, Outcome::failure(code), false);
    }
    return true;
  }

  void finish(Ping& ping, const Outcome& outcome, bool keeps_lane) {
    outcomes_[ping.place] = outcome;
    ping.exchange.reset();
    if (keeps_lane) {
      ping.link->answered();
      ping.link->give_back(std::move(ping.lane));
    } else {
      ping.link->discard(std::move(ping.lane));
    }
    ping.watch.reset();
    ping.operation.reset();
  }

  std::int64_t deadline_ns_;
  std::vector<Outcome> outcomes_;
  NoMemory no_memory_;
  const LaneSet::Alarm alarm_;  // of all links
  std::vector<Ping> pings_;
  std::vector<pollfd> polled_;
};

}  // namespace

std::vector<Outcome> ping_all(std::span<LaneSet* const> links, std::int64_t deadline_ns) {
  return PingRound(links, deadline_ns).run();
}

}  // namespace ldd
