#include "lanes/initiator/gather.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "copy/pool.h"

namespace ldd {

namespace {

constexpr std::size_t kMostPieces = 4096;  // of one request
// One system call reads so much, without waking other threads.
constexpr std::uint64_t kReadBytes = kSingleBatchBytes;
constexpr std::size_t kReadPieces = kMaxIovecs - 1;

constexpr std::size_t kReadingThreads = 2;

// For answers, which arrive in memory of the operation itself.
class NoGuard final : public BatchGuard {
 public:
  Outcome take(std::vector<Use>& /*uses*/) override { return {}; }
};

// Whole descriptors, since they are short.
std::vector<Run> divided(std::span<const std::uint64_t> lengths) {
  std::vector<Run> runs;
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (runs.empty() || bytes + lengths[i] > wire::kMaxGatherBytes ||
        i - runs.back().first == kMostPieces) {
      runs.push_back({i, i});
      bytes = 0;
    }
    bytes += lengths[i];
    runs.back().end = i + 1;
  }
  return runs;
}

// The descriptors of one read; pieces that are adjacent at the destination become one.
class Part {
 public:
  explicit Part(std::uint64_t from) : from_(from) {}

  [[nodiscard]] bool has_room(std::uint64_t length) const {
    return bytes_ + length <= kReadBytes && lengths_.size() < kReadPieces;
  }
  void add(std::uint64_t local, std::uint64_t length) {
    if (!lengths_.empty() && locals_.back() + lengths_.back() == local) {
      lengths_.back() += length;
    } else {
      locals_.push_back(local);
      remotes_.push_back(from_ + bytes_);
      lengths_.push_back(length);
    }
    bytes_ += length;
  }
  Outcome read(const GatheredRead& read) {
    const Outcome outcome = lengths_.empty() ? Outcome{} : read({locals_, remotes_, lengths_});
    from_ += bytes_;
    bytes_ = 0;
    locals_.clear();
    remotes_.clear();
    lengths_.clear();
    return outcome;
  }

 private:
  std::uint64_t from_;
  std::uint64_t bytes_ = 0;
  std::vector<std::uint64_t> locals_;
  std::vector<std::uint64_t> remotes_;
  std::vector<std::uint64_t> lengths_;
};

}  // namespace

GatherRequests::GatherRequests(const Descriptors& work, const LaneChecks& checks,
                               const GatheredRead& read, BatchGuard& no_guard)
    : work_(work), checks_(checks), read_(read), no_guard_(no_guard), runs_(divided(work.length)) {}

std::unique_ptr<Exchange> GatherRequests::next(ClientLane& lane) {
  const std::lock_guard lock(mutex_);
  if (next_ == runs_.size()) {
    return nullptr;
  }
  Asked& asked = asked_[&lane];
  asked.run = runs_[next_++];
  asked.answer_address = reinterpret_cast<std::uint64_t>(&asked.address);
  const std::size_t first = asked.run.first;
  const std::size_t count = asked.run.end - first;
  LaneRequest request;
  request.kind = wire::Kind::kGather;
  request.first_descriptor = first;
  request.deadline_ns = checks_.deadline_ns;
  request.words.resize(2 * count);
  request.fixed.version = checks_.version;
  request.fixed.cache_index = checks_.cache.index;
  request.fixed.cache_value = checks_.cache.value;
  request.fixed.key_index = checks_.key.index;
  request.fixed.key_value = checks_.key.value;
  request.fixed.count = static_cast<std::uint32_t>(count);
  const auto words = std::span(request.words);
  std::ranges::copy(work_.remote.subspan(first, count), words.begin());
  std::ranges::copy(work_.length.subspan(first, count), words.subspan(count).begin());
  const Cursor answer({&asked.answer_address, 1}, {&asked.answer_bytes, 1}, 0, 0,
                      asked.answer_bytes);
  return std::make_unique<Exchange>(lane, std::move(request), answer, no_guard_);
}

Outcome GatherRequests::answered(ClientLane& lane) {
  Asked asked;
  {
    const std::lock_guard lock(mutex_);
    asked = asked_[&lane];
  }
  wire::convert_words({&asked.address, 1});
  if (asked.address > std::numeric_limits<std::uint64_t>::max() - wire::kMaxGatherBytes) {
    return Outcome::failure(Code::kProtocol);  // no buffer is there
  }
  return fetch(asked.run, asked.address);
}

Outcome GatherRequests::fetch(const Run& run, std::uint64_t from) const {
  Outcome sum;
  Part part(from);
  for (std::size_t i = run.first; i <= run.end; ++i) {
    if (i == run.end || !part.has_room(work_.length[i])) {
      const Outcome outcome = part.read(read_);
      if (!outcome.ok()) {
        return Outcome::failure(outcome.code, outcome.sys_errno);
      }
      sum.moved_bytes += outcome.moved_bytes;
    }
    if (i < run.end) {
      part.add(work_.local[i], work_.length[i]);
    }
  }
  return sum;
}

Outcome Lanes::gather(const Descriptors& work, const LaneChecks& checks, const GatheredRead& read) {
  const LaneSet::Operation operation(lanes_);
  measure(work);
  const bool all_short =
      std::ranges::all_of(work.length, [](std::uint64_t length) { return length <= kReadBytes; });
  if (!all_short || work.length.empty()) {
    return Outcome::failure(Code::kSystem, EOPNOTSUPP);
  }
  NoGuard no_guard;
  GatherRequests requests(work, checks, read, no_guard);
  const std::size_t lanes = std::clamp<std::size_t>(lanes_.count(), 1, requests.count());
  const std::size_t threads = std::min({kReadingThreads, lanes, CopyPool::instance().threads()});
  return run_operation(lanes_, requests, {lanes, checks.deadline_ns, false, 0, threads});
}

}  // namespace ldd
