// CHECKSUM: the initiator of a transfer compares its side with ours, which own threads read.
// PROBE: it wants to know whether something that has no guard may read our pages.
#include <algorithm>
#include <cerrno>

#include "copy/checksum.h"
#include "lanes/served_lane.h"
#include "lanes/threads.h"

namespace ldd {

namespace {

// Short enough to be done on the io thread, which saves two changes of threads.
constexpr std::uint64_t kShortChecksumBytes = 256 * 1024;
constexpr std::uint64_t kShortProbeBytes = 4 * 1024 * 1024;

}  // namespace

ServedLane::Progress ServedLane::begin_checksum() {
  const Outcome checked =
      rights_.check(links_->node(), request_, deadline_ns_, Access::kLane, column(0), column(1));
  if (!checked.ok()) {
    return reply(checked);
  }
  const bool probes = header_->kind == wire::Kind::kProbe;
  sums_.assign(probes ? 0 : request_.count, 0);
  if (requested_bytes() <= (probes ? kShortProbeBytes : kShortChecksumBytes)) {
    return reply_sums(run_checksum());
  }
  const bool runs = run_on_job_thread([self = shared_from_this()] {
    const Outcome outcome = self->run_checksum();
    self->thread_.post([self, outcome] { self->end_checksum(outcome); });
  });
  if (!runs) {
    return reply_sums(Outcome::failure(Code::kSystem, kNoThreadErrno));
  }
  state_ = State::kJob;
  return Progress::kWait;
}

Outcome ServedLane::run_checksum() {
  const auto take = [this](std::vector<Use>& uses) {
    return cancelled_.load() || socket_.hung_up() ? Outcome::failure(Code::kCancelled)
                                                  : rights_.take(uses);
  };
  const Outcome outcome =
      header_->kind == wire::Kind::kProbe
          ? probe_ranges(column(0), column(1), take, Code::kRemoteFault)
          : checksum_ranges(column(0), column(1), take, Code::kRemoteFault, sums_);
  return outcome.ok() && !rights_.key_live() ? Outcome::failure(Code::kGone) : outcome;
}

void ServedLane::end_checksum(const Outcome& outcome) {
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
