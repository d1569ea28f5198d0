#include "lanes/initiator/operations.h"

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>

#include "copy/pool.h"
#include "lanes/initiator/driver.h"
#include "lanes/initiator/ping_all.h"

namespace ldd {

namespace {

constexpr std::uint64_t kMinStripeBytes = 1024 * 1024;
constexpr std::uint64_t kMaxStripeBytes = 16 * 1024 * 1024;
constexpr std::size_t kStripesPerLane = 4;
constexpr std::size_t kSendingThreads = 2;
constexpr std::size_t kStripeDescriptors = 16 * 1024;
constexpr std::uint64_t kShortRange = 4096;  // mean bytes of a range below which joining pays

// Holds the local entry that an operation reads or writes.
class LocalGuard : public BatchGuard {
 public:
  LocalGuard(Node& node, Ref local) : named_(local.named()), value_(local.value) {
    entry_ = named_ ? node.entries().find(local) : nullptr;
  }
  Outcome take(std::vector<Use>& uses) override {
    if (!named_) {
      return {};
    }
    return uses.emplace_back(entry_, value_) ? Outcome{} : Outcome::failure(Code::kLocalGone);
  }
  [[nodiscard]] bool live() const { return !named_ || entry_ != nullptr; }
  [[nodiscard]] int device() const { return entry_ == nullptr ? kHostMemory : entry_->device(); }
  // Of the entry, from which the offsets of a push count; 0 for a push from landing slots.
  [[nodiscard]] std::uint64_t begin() const { return entry_ == nullptr ? 0 : entry_->begin(); }

 private:
  bool named_;
  std::uint64_t value_;
  std::shared_ptr<Entry> entry_;
};

// A source of one request without descriptors.
class SingleRequest : public RequestSource {
 public:
  SingleRequest(wire::Kind kind, const wire::Request& fixed, std::int64_t deadline_ns,
                const Cursor& payload, BatchGuard& guard)
      : request_{kind, fixed, {}, 0, deadline_ns}, payload_(payload), guard_(guard) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    return std::exchange(done_, true)
               ? nullptr
               : std::make_unique<Exchange>(lane, request_, payload_, guard_);
  }

 private:
  LaneRequest request_;
  Cursor payload_;
  BatchGuard& guard_;
  bool done_ = false;
};

bool has_payload(wire::Kind kind) {
  return kind == wire::Kind::kRead || kind == wire::Kind::kWrite;
}

// A request for `count` descriptors of an operation from `first` on; its words are still to fill.
LaneRequest request_of(wire::Kind kind, const LaneChecks& checks, std::size_t first,
                       std::size_t count) {
  LaneRequest request;
  request.kind = kind;
  request.first_descriptor = first;
  request.words.resize(count * wire::words_per_descriptor(kind));
  request.deadline_ns = checks.deadline_ns;
  const Ref key = kind == wire::Kind::kPush ? checks.local : checks.key;
  wire::Request& fixed = request.fixed;
  fixed.version = checks.version;
  fixed.cache_index = checks.cache.index;
  fixed.cache_value = checks.cache.value;
  fixed.key_index = key.index;
  fixed.key_value = key.value;
  fixed.count = static_cast<std::uint32_t>(count);
  return request;
}

// A transfer divided into batches, each of them one request.
//
// Short remote ranges that follow one another are one range of a request, whose payload the local
// side still gathers or scatters: fewer words travel, and the target makes fewer pieces. A failure
// then names a range of several descriptors.
class Stripes : public RequestSource {
 public:
  Stripes(wire::Kind kind, const Descriptors& work, const LaneChecks& checks,
          std::vector<Batch> batches, LocalGuard& guard, bool joins)
      : kind_(kind),
        work_(work),
        checks_(checks),
        batches_(std::move(batches)),
        guard_(guard),
        joins_(joins) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    if (next_ == batches_.size()) {
      return nullptr;
    }
    const Batch& batch = batches_[next_++];
    const Cursor local = has_payload(kind_) ? Cursor(work_.local, work_.length, batch.first,
                                                     batch.offset, batch.bytes)
                                            : Cursor{};
    return std::make_unique<Exchange>(lane, request_for(batch), local, guard_, guard_.device());
  }

  // Whether a descriptor that an outcome names may stand for several.
  [[nodiscard]] bool joined() const { return joined_; }

 private:
  LaneRequest request_for(const Batch& batch) {
    std::vector<std::uint64_t> remote;
    std::vector<std::uint64_t> length;
    std::vector<std::uint64_t> local;
    std::uint64_t left = batch.bytes;
    std::uint64_t offset = batch.offset;
    for (std::size_t i = batch.first; left > 0; ++i, offset = 0) {
      const std::uint64_t take = std::min(left, work_.length[i] - offset);
      const std::uint64_t begin = work_.remote[i] + offset;
      left -= take;
      if (joins_ && !remote.empty() && remote.back() + length.back() == begin) {
        length.back() += take;
        joined_ = true;
        continue;
      }
      remote.push_back(begin);
      length.push_back(take);
      if (kind_ == wire::Kind::kPush) {
        local.push_back(work_.local[i] + offset - guard_.begin());
      }
    }
    LaneRequest request = request_of(kind_, checks_, batch.first, remote.size());
    const auto words = std::span(request.words);
    std::ranges::copy(remote, words.begin());
    std::ranges::copy(length, words.subspan(remote.size()).begin());
    std::ranges::copy(local, words.subspan(2 * remote.size()).begin());
    return request;
  }

  wire::Kind kind_;
  const Descriptors& work_;
  const LaneChecks& checks_;
  std::vector<Batch> batches_;
  LocalGuard& guard_;
  bool joins_;
  bool joined_ = false;
  std::size_t next_ = 0;
};

// The CRC-32C of ranges of the peer's memory, in requests of as many ranges as fit one.
class ChecksumParts : public RequestSource {
 public:
  ChecksumParts(std::span<const std::uint64_t> remote, std::span<const std::uint64_t> length,
                const LaneChecks& checks, std::span<std::uint32_t> sums, BatchGuard& guard)
      : remote_(remote), length_(length), checks_(checks), guard_(guard) {
    for (std::size_t first = 0; first < sums.size(); first += kStripeDescriptors) {
      const auto part = sums.subspan(first, std::min(kStripeDescriptors, sums.size() - first));
      addresses_.push_back(reinterpret_cast<std::uint64_t>(part.data()));
      sizes_.push_back(part.size_bytes());
    }
  }

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    if (next_ == addresses_.size()) {
      return nullptr;
    }
    const std::size_t part = next_++;
    const Cursor answer(std::span(&addresses_[part], 1), std::span(&sizes_[part], 1), 0, 0,
                        sizes_[part]);
    const std::size_t first = part * kStripeDescriptors;
    const std::size_t count = sizes_[part] / sizeof(std::uint32_t);
    LaneRequest request = request_of(wire::Kind::kChecksum, checks_, first, count);
    const auto words = std::span(request.words);
    std::ranges::copy(remote_.subspan(first, count), words.begin());
    std::ranges::copy(length_.subspan(first, count), words.subspan(count).begin());
    return std::make_unique<Exchange>(lane, std::move(request), answer, guard_);
  }

 private:
  std::span<const std::uint64_t> remote_;
  std::span<const std::uint64_t> length_;
  const LaneChecks& checks_;
  BatchGuard& guard_;
  std::vector<std::uint64_t> addresses_;  // of each part's checksums, in this process
  std::vector<std::uint64_t> sizes_;
  std::size_t next_ = 0;
};

// A copy of descriptors without the empty ones, so that the limits of a request count only those
// that move bytes.
struct Compact {
  explicit Compact(const Descriptors& work) {
    for (std::size_t i = 0; i < work.size(); ++i) {
      if (work.length[i] != 0) {
        local.push_back(work.local[i]);
        remote.push_back(work.remote[i]);
        length.push_back(work.length[i]);
        origin.push_back(static_cast<std::int64_t>(i));
      }
    }
  }
  [[nodiscard]] Descriptors descriptors() const { return {local, remote, length}; }

  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;
  std::vector<std::int64_t> origin;
};

}  // namespace

Outcome Lanes::transfer(wire::Kind kind, const Descriptors& work, const LaneChecks& given) {
  const LaneSet::Operation operation(lanes_);
  const Extent extent = measure(work);
  if (extent.pieces != work.size() && extent.pieces != 0) {
    const Compact compact(work);
    Outcome outcome = transfer(kind, compact.descriptors(), given);
    if (outcome.index >= 0) {
      outcome.index = compact.origin[static_cast<std::size_t>(outcome.index)];
    }
    return outcome;
  }
  LocalGuard guard(*lanes_.node(), given.local);
  const Outcome state = lanes_.open();
  if (!state.ok()) {
    return state;
  }
  if (!guard.live()) {
    return Outcome::failure(Code::kLocalGone);
  }
  const bool push = kind == wire::Kind::kPush;
  std::size_t lanes = 1;
  std::uint64_t stripe_bytes = kMaxTransferBytes;
  if (!push && extent.bytes > kMinStripeBytes) {
    lanes_.want_more();
    lanes = std::max<std::size_t>(lanes_.count(), 1);
    stripe_bytes =
        std::clamp(extent.bytes / (lanes * kStripesPerLane), kMinStripeBytes, kMaxStripeBytes);
  }
  std::vector<Batch> batches = divide(work, stripe_bytes, kStripeDescriptors);
  if (batches.empty()) {
    batches.emplace_back();  // of no bytes: checks that the cache exists
  }
  const bool target_acts = kind == wire::Kind::kWrite || push;
  LaneChecks checks = given;
  checks.deadline_ns = target_acts ? give_up_ns(given.deadline_ns) : given.deadline_ns;
  // Sending takes more work than receiving; a read's senders are the peer's threads.
  const std::size_t threads =
      kind == wire::Kind::kWrite
          ? std::min({kSendingThreads, lanes, CopyPool::instance().threads()})
          : 1;
  bool joins = has_payload(kind) && extent.bytes < work.size() * kShortRange;
  while (true) {
    Stripes stripes(kind, work, checks, batches, guard, joins);
    const Outcome outcome = run_operation(
        lanes_, stripes, {lanes, given.deadline_ns, target_acts, checks.deadline_ns, threads});
    if (outcome.index < 0 || !stripes.joined()) {
      return outcome;
    }
    joins = false;  // again, to learn which descriptor of a joined range is at fault
  }
}

Outcome Lanes::read(const Descriptors& work, const LaneChecks& checks) {
  return transfer(wire::Kind::kRead, work, checks);
}

Outcome Lanes::write(const Descriptors& work, const LaneChecks& checks) {
  return transfer(wire::Kind::kWrite, work, checks);
}

Outcome Lanes::push(const Descriptors& work, const LaneChecks& checks) {
  return transfer(wire::Kind::kPush, work, checks);
}

Outcome Lanes::probe(std::span<const std::uint64_t> remote, std::span<const std::uint64_t> length,
                     const LaneChecks& checks) {
  return transfer(wire::Kind::kProbe, {remote, remote, length}, checks);
}

Outcome Lanes::consume(Ref key, std::int64_t deadline_ns) {
  const LaneSet::Operation operation(lanes_);
  LocalGuard guard(*lanes_.node(), {});
  wire::Request request;
  request.key_index = key.index;
  request.key_value = key.value;
  const std::int64_t by_ns = give_up_ns(deadline_ns);
  SingleRequest single(wire::Kind::kConsume, request, by_ns, {}, guard);
  return run_operation(lanes_, single, {1, deadline_ns, true, by_ns});
}

std::pair<Outcome, std::uint64_t> Lanes::version(std::int64_t deadline_ns) {
  const LaneSet::Operation operation(lanes_);
  LocalGuard guard(*lanes_.node(), {});
  SingleRequest single(wire::Kind::kDirectoryVersion, {}, deadline_ns, {}, guard);
  std::uint64_t value = 0;
  const Outcome outcome = run_operation(lanes_, single, {1, deadline_ns, false}, &value);
  return {outcome, value};
}

std::pair<Outcome, std::vector<std::byte>> Lanes::read_log(std::uint64_t offset, std::uint64_t size,
                                                           std::int64_t deadline_ns) {
  const LaneSet::Operation operation(lanes_);
  LocalGuard guard(*lanes_.node(), {});
  std::vector<std::byte> log;
  Outcome outcome;
  while (log.size() < size) {
    const std::uint64_t before = log.size();
    const std::uint64_t part = std::min(size - before, wire::kMaxLogBytes);
    log.resize(before + part);
    const std::uint64_t address = reinterpret_cast<std::uint64_t>(log.data()) + before;
    wire::Request request;
    request.offset = offset + before;
    request.size = part;
    SingleRequest single(wire::Kind::kReadLog, request, deadline_ns,
                         Cursor({&address, 1}, {&part, 1}, 0, 0, part), guard);
    outcome = run_operation(lanes_, single, {1, deadline_ns, false});
    log.resize(before + outcome.moved_bytes);
    if (!outcome.ok() || outcome.moved_bytes < part) {
      break;
    }
  }
  outcome.moved_bytes = log.size();
  return {outcome, std::move(log)};
}

std::vector<Outcome> Lanes::ping_all(std::span<Lanes* const> links, std::int64_t deadline_ns) {
  std::vector<LaneSet*> sets;
  sets.reserve(links.size());
  for (Lanes* link : links) {
    sets.push_back(&link->lanes_);
  }
  return ldd::ping_all(sets, deadline_ns);
}

Outcome Lanes::ping(std::int64_t deadline_ns) {
  const LaneSet::Operation operation(lanes_);
  LocalGuard guard(*lanes_.node(), {});
  SingleRequest single(wire::Kind::kPing, {}, deadline_ns, {}, guard);
  return run_operation(lanes_, single, {1, deadline_ns, false});
}

struct ChecksumQuestion::State {
  State(LaneSet& set, std::span<const std::uint64_t> its_remote,
        std::span<const std::uint64_t> its_length, const LaneChecks& its_checks)
      : operation(set),
        remote(its_remote.begin(), its_remote.end()),
        length(its_length.begin(), its_length.end()),
        checks(its_checks),
        sums(length.size()),
        guard(*set.node(), {}),
        parts(remote, length, checks, sums, guard),
        driver(set, parts, {1, checks.deadline_ns, false}) {
    driver.begin();
  }

  LaneSet::Operation operation;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;
  LaneChecks checks;
  std::vector<std::uint32_t> sums;
  LocalGuard guard;
  ChecksumParts parts;
  OperationDriver driver;
};

ChecksumQuestion::ChecksumQuestion(Lanes& lanes, std::span<const std::uint64_t> remote,
                                   std::span<const std::uint64_t> length,
                                   const LaneChecks& checks) {
  measure({remote, remote, length});
  state_ = std::make_unique<State>(lanes.lanes_, remote, length, checks);
}

ChecksumQuestion::~ChecksumQuestion() = default;

ChecksumQuestion::Answer ChecksumQuestion::wait() {
  const std::unique_ptr<State> state = std::move(state_);
  if (state == nullptr) {
    throw std::logic_error("the checksums have been returned already");
  }
  Answer answer{state->driver.finish(), std::move(state->sums)};
  wire::convert_words(std::span(answer.second));
  return answer;
}

}  // namespace ldd
