// PUSH: a doorbell. Threads of this process read the memory of an initiator on this host, or the
// landing slots to which its engine has written; no other process writes the memory of this one.
// The request names offsets in an entry; the addresses come from the initiator's published page,
// which lists the ranges of its entries.
#include <algorithm>
#include <cerrno>

#include "lanes/target/served_lane.h"
#include "lanes/target/threads.h"

namespace ldd {

namespace {

// Translates the outcome of a read by this side to the view of the initiator.
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
  const Outcome checked = check_rights(Access::kDoorbell);
  if (!checked.ok()) {
    return reply(checked);
  }
  if (links_->source(link_id_, request_.key_value != 0) == nullptr) {
    return reply(Outcome::failure(Code::kSystem, EOPNOTSUPP));
  }
  // A job thread, however short the push is: reading the initiator's memory may take any time.
  state_ = State::kPush;
  return Progress::kGoOn;
}

ServedLane::Progress ServedLane::push() {
  const Outcome outcome = contained([this] { return run_push(); });
  links_->counts().pushed_bytes.fetch_add(outcome.moved_bytes, std::memory_order_relaxed);
  return reply(outcome);
}

Outcome ServedLane::run_push() {
  const std::shared_ptr<HostPeer> host = links_->source(link_id_, request_.key_value != 0);
  Outcome sum;
  if (host == nullptr) {  // the link was dropped meanwhile
    return Outcome::failure(Code::kCancelled);
  }
  std::vector<std::uint64_t> sources;
  const Outcome found = find_sources(*host, sources);
  if (!found.ok()) {
    return found;
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
                           std::span(sources).subspan(first, end - first),
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

// Converts the offsets of the request to addresses in the initiator.
Outcome ServedLane::find_sources(HostPeer& host, std::vector<std::uint64_t>& sources) {
  const Ref entry{request_.key_index, request_.key_value};
  const std::vector<Range> ranges = host.ranges(entry);
  if (ranges.empty() && host.restricted()) {  // that memory is reached by landing slots only
    return Outcome::failure(Code::kDenied, 0, request_.count == 0 ? -1 : 0);
  }
  if (ranges.empty()) {  // the initiator has to send the bytes, if the entry is live
    return host.view().live(entry) ? Outcome::failure(Code::kSystem, EOPNOTSUPP)
                                   : Outcome::failure(Code::kLocalGone);
  }
  const auto offsets = column(2);
  const auto lengths = column(1);
  sources.resize(offsets.size());
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    sources[i] = ranges.front().begin + offsets[i];
    if (!any_contains(ranges, sources[i], lengths[i])) {
      links_->offend(link_id_, true);
      return Outcome::failure(Code::kDenied, 0, static_cast<std::int64_t>(i));
    }
  }
  return {};
}

}  // namespace ldd
