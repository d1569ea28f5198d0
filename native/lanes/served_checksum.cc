// CHECKSUM: the initiator of a transfer compares its side with ours, which own threads read.
// PROBE: it wants to know whether something that has no guard may read our pages.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "copy/checksum.h"
#include "lanes/served_lane.h"
#include "lanes/threads.h"
#include "lanes/touch.h"

namespace ldd {

namespace {

// Short enough to be done on the io thread, which saves two changes of threads.
constexpr std::uint64_t kShortChecksumBytes = 256 * 1024;

}  // namespace

ServedLane::Progress ServedLane::begin_checksum() {
  const Outcome checked =
      rights_.check(links_->node(), request_, deadline_ns_, Access::kLane, column(0), column(1));
  if (!checked.ok()) {
    return reply(checked);
  }
  if (header_->kind == wire::Kind::kProbe) {
    return begin_probe();
  }
  sums_.assign(request_.count, 0);
  if (requested_bytes() <= kShortChecksumBytes) {
    return reply_sums(run_checksum());
  }
  has_job_.store(true);
  const bool runs = run_on_job_thread([self = shared_from_this()] {
    const Outcome outcome = contained([&] { return self->run_checksum(); });
    self->thread_.post([self, outcome] { self->end_checksum(outcome); });
  });
  if (!runs) {
    has_job_.store(false);
    return reply_sums(Outcome::failure(Code::kSystem, kNoThreadErrno));
  }
  state_ = State::kJob;
  return Progress::kWait;
}

// The pages may never come: the job has its own copy of everything and the lane does not wait for
// it, so that neither the end of the link nor of a registration does.
ServedLane::Progress ServedLane::begin_probe() {
  const auto check = [rights = rights_, self = shared_from_this(), first = true]() mutable {
    if (std::exchange(first, false)) {
      self->links_->node().published().bring_in();
    }
    if (self->cancelled_.load()) {
      return Outcome::failure(Code::kCancelled);
    }
    std::vector<Use> uses;
    return rights.take(uses);
  };
  has_job_.store(true);
  const auto addresses = column(0);
  const auto lengths = column(1);
  const bool runs = touch_in_background(
      {{addresses.begin(), addresses.end()}, {lengths.begin(), lengths.end()}, check},
      [self = shared_from_this()](const Outcome& outcome) {
        self->thread_.post([self, outcome] { self->end_checksum(outcome); });
      });
  if (!runs) {
    has_job_.store(false);
    return reply_sums(Outcome::failure(Code::kSystem, kNoThreadErrno));
  }
  state_ = State::kJob;
  job_may_outlast_lane_ = true;
  return Progress::kWait;
}

Outcome ServedLane::run_checksum() {
  const auto take = [this](std::vector<Use>& uses) {
    return cancelled_.load() || socket_.hung_up() ? Outcome::failure(Code::kCancelled)
                                                  : rights_.take(uses);
  };
  const Outcome outcome = checksum_ranges(column(0), column(1), take, Code::kRemoteFault, sums_);
  return outcome.ok() && !rights_.key_live() ? Outcome::failure(Code::kGone) : outcome;
}

void ServedLane::end_checksum(const Outcome& outcome) {
  has_job_.store(false, std::memory_order_release);
  job_may_outlast_lane_ = false;
  if (state_ == State::kClosed) {
    return;
  }
  if (cancelled_.load()) {
    close();
    return;
  }
  reply_sums(outcome);
  on_events(0);
}

ServedLane::Progress ServedLane::reply_sums(const Outcome& outcome) {
  wire::convert_words(std::span(sums_));
  const auto sums = std::as_bytes(std::span(sums_));
  const Progress progress = reply(outcome, outcome.ok() ? sums : std::span<const std::byte>{});
  std::vector<std::uint32_t>().swap(sums_);
  return progress;
}

}  // namespace ldd
