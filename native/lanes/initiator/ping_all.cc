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
constexpr std::int64_t kAtOnce = 0;

class NoMemory : public BatchGuard {
 public:
  Outcome take(std::vector<Use>& /*uses*/) override { return {}; }
};

// A PING under way.
struct Asked {
  std::size_t place;
  LaneSet* link;
  std::unique_ptr<LaneSet::Operation> operation;
  LaneSet::Lane lane;
  std::unique_ptr<Exchange> exchange;
};

class Round {
 public:
  Round(std::span<LaneSet* const> links, std::int64_t deadline_ns)
      : deadline_ns_(deadline_ns), outcomes_(links.size()) {
    asked_.reserve(links.size());
    for (std::size_t i = 0; i < links.size(); ++i) {
      ask(i, *links[i]);
    }
  }

  std::vector<Outcome> run() {
    while (!asked_.empty()) {
      wait();
      const bool over = now_ns() >= deadline_ns_;
      std::vector<Asked> left;
      for (std::size_t i = 0; i < asked_.size(); ++i) {
        const bool ready = polled_[2 * i].revents != 0;
        const bool woken = polled_[2 * i + 1].revents != 0;
        if (!ended(asked_[i], ready, woken, over)) {
          left.push_back(std::move(asked_[i]));
        }
      }
      asked_ = std::move(left);
    }
    return std::move(outcomes_);
  }

 private:
  void ask(std::size_t place, LaneSet& link) {
    Asked one{place, &link, std::make_unique<LaneSet::Operation>(link), nullptr, nullptr};
    std::vector<LaneSet::Lane> taken;
    outcomes_[place] = link.take(1, kAtOnce, taken);
    if (!outcomes_[place].ok()) {
      return;
    }
    one.lane = std::move(taken.front());
    one.exchange = std::make_unique<Exchange>(
        *one.lane, Ask{wire::Kind::kPing, {}, {}, 0, deadline_ns_}, Cursor{}, nothing_);
    if (!stepped(one)) {
      asked_.push_back(std::move(one));
    }
  }

  void wait() {
    polled_.clear();
    for (const Asked& one : asked_) {
      polled_.push_back({one.exchange->fd(), one.exchange->events(), 0});
      polled_.push_back({one.link->wake_fd(), POLLIN, 0});
    }
    ::poll(polled_.data(), polled_.size(), remaining_ms(deadline_ns_, kLongestPollMs));
  }

  bool ended(Asked& one, bool ready, bool woken, bool over) {
    if (ready && stepped(one)) {
      return true;
    }
    const Outcome state = woken ? one.link->open() : Outcome{};
    if (!state.ok() || over) {
      finish(one, state.ok() ? Outcome::failure(Code::kTimeout) : state, false);
      return true;
    }
    return false;
  }

  // Whether it has come to its end.
  bool stepped(Asked& one) {
    const Flow flow = one.exchange->step();
    if (flow == Flow::kWait || flow == Flow::kGoOn) {
      return false;
    }
    if (flow == Flow::kEnd) {
      finish(one, one.exchange->outcome(), true);
    } else {
      const Code code = flow == Flow::kBroken ? Code::kPeerDead : Code::kProtocol;
      finish(one, Outcome::failure(code), false);
    }
    return true;
  }

  void finish(Asked& one, const Outcome& outcome, bool keeps_lane) {
    outcomes_[one.place] = outcome;
    one.exchange.reset();
    if (keeps_lane) {
      one.link->give_back(std::move(one.lane));
    } else {
      one.link->discard(std::move(one.lane));
    }
    one.operation.reset();
  }

  std::int64_t deadline_ns_;
  std::vector<Outcome> outcomes_;
  NoMemory nothing_;
  std::vector<Asked> asked_;
  std::vector<pollfd> polled_;
};

}  // namespace

std::vector<Outcome> ping_all(std::span<LaneSet* const> links, std::int64_t deadline_ns) {
  return Round(links, deadline_ns).run();
}

}  // namespace ldd
