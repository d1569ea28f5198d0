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

// The own entry that an operation reads or writes.
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
  // Of the entry, which the offsets of a push count from; 0 when it names none, but a window.
  [[nodiscard]] std::uint64_t begin() const { return entry_ == nullptr ? 0 : entry_->begin(); }

 private:
  bool named_;
  std::uint64_t value_;
  std::shared_ptr<Entry> entry_;
};

class Call : public Parts {
 public:
  Call(wire::Kind kind, const wire::Request& request, std::int64_t deadline_ns,
       const Cursor& payload, BatchGuard& guard)
      : kind_(kind),
        request_(request),
        deadline_ns_(deadline_ns),
        payload_(payload),
        guard_(guard) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    if (std::exchange(done_, true)) {
      return nullptr;
    }
    return std::make_unique<Exchange>(lane, Ask{kind_, request_, {}, 0, deadline_ns_}, payload_,
                                      guard_);
  }

 private:
  wire::Kind kind_;
  wire::Request request_;
  std::int64_t deadline_ns_;
  Cursor payload_;
  BatchGuard& guard_;
  bool done_ = false;
};

class Stripes : public Parts {
 public:
  Stripes(wire::Kind kind, const Descriptors& work, const LaneChecks& checks,
          std::vector<Batch> batches, LocalGuard& guard)
      : kind_(kind), work_(work), checks_(checks), batches_(std::move(batches)), guard_(guard) {}

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    if (next_ == batches_.size()) {
      return nullptr;
    }
    const Batch& batch = batches_[next_++];
    const bool moves_here = kind_ == wire::Kind::kRead || kind_ == wire::Kind::kWrite;
    const Cursor local =
        !moves_here ? Cursor{}
                    : Cursor(work_.local, work_.length, batch.first, batch.offset, batch.bytes);
    return std::make_unique<Exchange>(lane, ask(batch), local, guard_);
  }

 private:
  Ask ask(const Batch& batch) const {
    Ask ask;
    ask.kind = kind_;
    ask.first_descriptor = batch.first;
    std::size_t count = 0;
    for (std::uint64_t left = batch.bytes, offset = batch.offset; left > 0; ++count, offset = 0) {
      left -= std::min(left, work_.length[batch.first + count] - offset);
    }
    const bool push = kind_ == wire::Kind::kPush;
    ask.words.resize(count * wire::words_per_descriptor(kind_));
    const auto words = std::span(ask.words);
    std::copy_n(work_.remote.begin() + static_cast<std::ptrdiff_t>(batch.first), count,
                words.begin());
    std::copy_n(work_.length.begin() + static_cast<std::ptrdiff_t>(batch.first), count,
                words.begin() + static_cast<std::ptrdiff_t>(count));
    if (push) {
      const auto first = work_.local.begin() + static_cast<std::ptrdiff_t>(batch.first);
      std::transform(first, first + static_cast<std::ptrdiff_t>(count),
                     words.begin() + static_cast<std::ptrdiff_t>(2 * count),
                     [&](std::uint64_t address) { return address - guard_.begin(); });
    }
    cut(words, count, batch);
    wire::Request& request = ask.request;
    ask.deadline_ns = checks_.deadline_ns;
    request.version = checks_.version;
    request.cache_index = checks_.cache.index;
    request.cache_value = checks_.cache.value;
    request.key_index = push ? checks_.local.index : checks_.key.index;
    request.key_value = push ? checks_.local.value : checks_.key.value;
    request.count = static_cast<std::uint32_t>(count);
    return ask;
  }

  // Shortens the first and the last descriptor to the batch's bounds.
  void cut(std::span<std::uint64_t> words, std::size_t count, const Batch& batch) const {
    if (count == 0) {
      return;
    }
    words[0] += batch.offset;
    words[count] -= batch.offset;
    if (kind_ == wire::Kind::kPush) {
      words[2 * count] += batch.offset;
    }
    std::uint64_t before = 0;
    for (std::size_t i = 0; i + 1 < count; ++i) {
      before += words[count + i];
    }
    words[2 * count - 1] = batch.bytes - before;
  }

  wire::Kind kind_;
  const Descriptors& work_;
  const LaneChecks& checks_;
  std::vector<Batch> batches_;
  LocalGuard& guard_;
  std::size_t next_ = 0;
};

// One question for checksums, in parts of so many ranges that each fits a request.
class Sums : public Parts {
 public:
  Sums(std::span<const std::uint64_t> remote, std::span<const std::uint64_t> length,
       const LaneChecks& checks, std::span<std::uint32_t> sums, BatchGuard& guard)
      : remote_(remote), length_(length), checks_(checks), guard_(guard) {
    for (std::size_t first = 0; first < sums.size(); first += kStripeDescriptors) {
      const auto part = sums.subspan(first, std::min(kStripeDescriptors, sums.size() - first));
      targets_.push_back(reinterpret_cast<std::uint64_t>(part.data()));
      sizes_.push_back(part.size_bytes());
    }
  }

  std::unique_ptr<Exchange> next(ClientLane& lane) override {
    if (next_ == targets_.size()) {
      return nullptr;
    }
    const std::size_t part = next_++;
    const std::span<const std::uint64_t> target(&targets_[part], 1);
    const std::span<const std::uint64_t> size(&sizes_[part], 1);
    const Cursor answer(target, size, 0, 0, sizes_[part]);
    return std::make_unique<Exchange>(lane, ask(part), answer, guard_);
  }

 private:
  Ask ask(std::size_t part) const {
    Ask ask;
    ask.kind = wire::Kind::kChecksum;
    ask.first_descriptor = part * kStripeDescriptors;
    const std::size_t count = sizes_[part] / sizeof(std::uint32_t);
    for (const auto& column : {remote_, length_}) {
      const auto some = column.subspan(ask.first_descriptor, count);
      ask.words.insert(ask.words.end(), some.begin(), some.end());
    }
    ask.deadline_ns = checks_.deadline_ns;
    ask.request.version = checks_.version;
    ask.request.cache_index = checks_.cache.index;
    ask.request.cache_value = checks_.cache.value;
    ask.request.key_index = checks_.key.index;
    ask.request.key_value = checks_.key.value;
    ask.request.count = static_cast<std::uint32_t>(count);
    return ask;
  }

  std::span<const std::uint64_t> remote_;
  std::span<const std::uint64_t> length_;
  const LaneChecks& checks_;
  BatchGuard& guard_;
  std::vector<std::uint64_t> targets_;  // where the sums of a part go
  std::vector<std::uint64_t> sizes_;
  std::size_t next_ = 0;
};

// The same work without its empty descriptors, so that a request's caps count only what moves.
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

Outcome Lanes::transfer(wire::Kind kind, const Descriptors& work, const LaneChecks& asked) {
  const LaneSet::Operation operation(lanes_);
  const Extent extent = measure(work);
  if (extent.pieces != work.size() && extent.pieces != 0) {
    const Compact compact(work);
    Outcome outcome = transfer(kind, compact.descriptors(), asked);
    if (outcome.index >= 0) {
      outcome.index = compact.origin[static_cast<std::size_t>(outcome.index)];
    }
    return outcome;
  }
  LocalGuard guard(*lanes_.node(), asked.local);
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
    lanes = std::max<std::size_t>(lanes_.count(), 1);
    stripe_bytes =
        std::clamp(extent.bytes / (lanes * kStripesPerLane), kMinStripeBytes, kMaxStripeBytes);
  }
  std::vector<Batch> batches = divide(work, stripe_bytes, kStripeDescriptors);
  if (batches.empty()) {
    batches.emplace_back();  // of no bytes: it asks whether the cache is there
  }
  const bool target_acts = kind == wire::Kind::kWrite || push;
  LaneChecks checks = asked;
  checks.deadline_ns = target_acts ? give_up_ns(asked.deadline_ns) : asked.deadline_ns;
  Stripes stripes(kind, work, checks, std::move(batches), guard);
  // Whoever sends has the most work: a read's senders are the peer's threads.
  const std::size_t threads =
      kind == wire::Kind::kWrite
          ? std::min({kSendingThreads, lanes, CopyPool::instance().threads()})
          : 1;
  return drive(lanes_, stripes,
               {lanes, asked.deadline_ns, target_acts, checks.deadline_ns, threads});
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
  Call call(wire::Kind::kConsume, request, by_ns, {}, guard);
  return drive(lanes_, call, {1, deadline_ns, true, by_ns});
}

std::pair<Outcome, std::uint64_t> Lanes::version(std::int64_t deadline_ns) {
  const LaneSet::Operation operation(lanes_);
  LocalGuard guard(*lanes_.node(), {});
  Call call(wire::Kind::kDirectoryVersion, {}, deadline_ns, {}, guard);
  std::uint64_t value = 0;
  const Outcome outcome = drive(lanes_, call, {1, deadline_ns, false}, &value);
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
    Call call(wire::Kind::kReadLog, request, deadline_ns,
              Cursor({&address, 1}, {&part, 1}, 0, 0, part), guard);
    outcome = drive(lanes_, call, {1, deadline_ns, false});
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
  Call call(wire::Kind::kPing, {}, deadline_ns, {}, guard);
  return drive(lanes_, call, {1, deadline_ns, false});
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
        asked(set, parts, {1, checks.deadline_ns, false}) {}

  LaneSet::Operation operation;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;
  LaneChecks checks;
  std::vector<std::uint32_t> sums;
  LocalGuard guard;
  Sums parts;
  Drive asked;
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
    throw std::logic_error("the question has been answered");
  }
  Answer answer{state->asked.finish(), std::move(state->sums)};
  wire::convert_words(std::span(answer.second));
  return answer;
}

}  // namespace ldd
