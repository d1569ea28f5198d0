// PUSH: a doorbell. Own threads read the memory of an initiator on this host, or the landing slots
// where its engine has put the bytes; nobody else ever writes ours.
#include <cerrno>

#include "lanes/served_lane.h"
#include "lanes/threads.h"

namespace ldd {

namespace {

// Short enough to be done on the io thread, which saves two changes of threads.
constexpr std::uint64_t kShortPushBytes = 256 * 1024;

// An outcome of our reading as the pushing side sees it.
Code seen_from_initiator(Code code) {
  switch (code) {
    case Code::kGone:
      return Code::kLocalGone;
    case Code::kLocalGone:
      return Code::kGone;
    case Code::kRemoteFault:
      return Code::kLocalFault;
    case Code::kLocalFault:
      return Code::kRemoteFault;
    case Code::kClosed:
      return Code::kPeerDead;
    default:
      return code;
  }
}

}  // namespace

ServedLane::Progress ServedLane::begin_push() {
  const Outcome checked = rights_.check(links_->node(), request_, deadline_ns_, Access::kDoorbell,
                                        column(0), column(1));
  if (!checked.ok()) {
    return reply(checked);
  }
  if (links_->source(link_id_, rights_.on_device()) == nullptr) {
    return reply(Outcome::failure(Code::kSystem, EOPNOTSUPP));
  }
  if (requested_bytes() <= kShortPushBytes) {
    const Outcome outcome = run_push();
    links_->counts().pushed_bytes.fetch_add(outcome.moved_bytes, std::memory_order_relaxed);
    return reply(outcome);
  }
  const bool runs = run_on_job_thread([self = shared_from_this()] {
    const Outcome outcome = self->run_push();
    self->thread_.post([self, outcome] { self->end_push(outcome); });
  });
  if (!runs) {
    return reply(Outcome::failure(Code::kSystem, kNoThreadErrno));
  }
  state_ = State::kJob;
  return Progress::kWait;
}

Outcome ServedLane::run_push() {
  const std::shared_ptr<HostPeer> host = links_->source(link_id_, rights_.on_device());
  Outcome sum;
  if (host == nullptr) {  // the link was dropped meanwhile
    return Outcome::failure(Code::kCancelled);
  }
  ReadChecks checks;
  checks.cache = {request_.key_index, request_.key_value};
  checks.deadline_ns = deadline_ns_;
  checks.more = [this] {
    return cancelled_.load() || socket_.hung_up() ? Outcome::failure(Code::kCancelled) : Outcome{};
  };
  for (std::size_t first = 0; first < request_.count;) {
    checks.local = rights_.entry_of(first);
    std::size_t end = first + 1;
    while (end < request_.count && rights_.entry_of(end).index == checks.local.index) {
      ++end;
    }
    const Descriptors work{column(0).subspan(first, end - first),
                           column(2).subspan(first, end - first),
                           column(1).subspan(first, end - first)};
    const Outcome outcome = host->read(work, checks);
    sum.moved_bytes += outcome.moved_bytes;
    if (!outcome.ok()) {
      sum.code = seen_from_initiator(outcome.code);
      sum.sys_errno = outcome.sys_errno;
      sum.index = outcome.index < 0 ? -1 : outcome.index + static_cast<std::int64_t>(first);
      break;
    }
    first = end;
  }
  return sum;
}

void ServedLane::end_push(const Outcome& outcome) {
  links_->counts().pushed_bytes.fetch_add(outcome.moved_bytes, std::memory_order_relaxed);
  if (cancelled_.load()) {
    close();
    return;
  }
  reply(outcome);
  on_events(0);
}

}  // namespace ldd
