// CHECKSUM: threads of this process compute checksums of its memory, which the initiator compares
// with its own. PROBE: they check that they can read pages of it, and bring absent ones in.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "copy/checksum.h"
#include "copy/gpu_checksum.h"
#include "lanes/target/served_lane.h"
#include "lanes/target/threads.h"
#include "lanes/target/touch.h"

namespace ldd {

namespace {

// Short enough for the io thread, which saves two thread switches.
constexpr std::uint64_t kShortChecksumBytes = 256 * 1024;

}  // namespace

ServedLane::Progress ServedLane::begin_checksum() {
  const Outcome checked = check_rights(Access::kChecksum);
  if (!checked.ok()) {
    return reply(checked);
  }
  if (requested_bytes() <= kShortChecksumBytes && !rights_.on_device()) {
    return checksum();
  }
  state_ = State::kChecksum;
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::checksum() {
  std::vector<std::uint32_t> sums;
  const Outcome outcome = contained([&] {
    sums.assign(request_.count, 0);
    return run_checksum(sums);
  });
  if (!outcome.ok()) {
    return reply(outcome);
  }
  wire::convert_words(std::span(sums));
  return reply(outcome, std::as_bytes(std::span(sums)));
}

Outcome ServedLane::run_checksum(std::span<std::uint32_t> sums) {
  const auto take = [this](std::vector<Use>& uses) {
    return cancelled_.load() || socket_.hung_up() ? Outcome::failure(Code::kCancelled)
                                                  : rights_.take(uses);
  };
  const Outcome outcome =
      rights_.on_device() ? run_checksum_on_gpu(sums)
                          : checksum_ranges(column(0), column(1), take, Code::kRemoteFault, sums);
  return outcome.ok() && !rights_.key_live() ? Outcome::failure(Code::kGone) : outcome;
}

// The GPU may not answer. So its work has copies of everything, and may outlive the lane.
Outcome ServedLane::run_checksum_on_gpu(std::span<std::uint32_t> sums) {
  const auto addresses = column(0);
  const auto lengths = column(1);
  const auto take = [rights = rights_, self = shared_from_this()](std::vector<Use>& uses) {
    return self->cancelled_.load() ? Outcome::failure(Code::kCancelled) : rights.take(uses);
  };
  const auto more = [this] {
    return cancelled_.load() || socket_.hung_up() ? Outcome::failure(Code::kCancelled) : Outcome{};
  };
  GpuRanges ranges{rights_.device(),
                   {addresses.begin(), addresses.end()},
                   {lengths.begin(), lengths.end()},
                   take,
                   Code::kRemoteFault};
  return checksum_on_gpu(std::move(ranges), deadline_ns_, more, sums);
}

ServedLane::Progress ServedLane::begin_probe() {
  const Outcome checked = check_rights(Access::kTouch);
  if (!checked.ok()) {
    return reply(checked);
  }
  state_ = State::kProbe;
  return Progress::kGoOn;
}

// A page may never come. So the job has copies of everything and the lane does not wait for it; nor
// does the end of the link or of a registration.
ServedLane::Progress ServedLane::probe() {
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
  job_ = Job::kBesideLane;
  const auto addresses = column(0);
  const auto lengths = column(1);
  const bool runs = touch_in_background(
      {{addresses.begin(), addresses.end()}, {lengths.begin(), lengths.end()}, check},
      [self = shared_from_this()](const Outcome& outcome) {
        self->thread_.post([self, outcome] { self->end_probe(outcome); });
      });
  if (!runs) {
    job_ = Job::kNone;
    return reply(Outcome::failure(Code::kSystem, kNoThreadErrno));
  }
  state_ = State::kTouching;
  return Progress::kWait;
}

void ServedLane::end_probe(const Outcome& outcome) {
  job_ = Job::kNone;
  if (state_ == State::kClosed) {
    return;
  }
  if (cancelled_.load()) {
    close();
    return;
  }
  reply(outcome);
  on_events(0);
}

}  // namespace ldd
