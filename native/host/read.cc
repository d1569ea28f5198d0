#include "host/read.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "copy/local_copy.h"
#include "copy/pool.h"
#include "cuda/copy.h"
#include "host/stretches.h"

namespace ldd {

namespace {

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

// Buffers too large for a thread with a small stack. One per thread suffices: batches never nest.
struct Room {
  std::array<iovec, kMaxIovecs> local;
  std::array<iovec, kMaxIovecs> remote;
  Stretches stretches;
};

Room& room() {
  thread_local const auto own = std::make_unique<Room>();
  return *own;
}

Code code_of(int error_number) { return error_number == ESRCH ? Code::kPeerDead : Code::kSystem; }

}  // namespace

HostRead::HostRead(const HostPeer& peer, const Descriptors& work, const ReadChecks& checks,
                   std::shared_ptr<const SegmentList> segments, std::span<std::uint32_t> sums)
    : peer_(peer),
      work_(work),
      checks_(checks),
      segments_(std::move(segments)),
      sums_(sums),
      extent_(measure(work)) {
  if (checks_.local.named()) {
    local_entry_ = peer_.node_->entries().find(checks_.local);
  }
  mapped_ = all_mapped();
  if (mapped_) {
    prepare_guarded_copies();
    kind_ = copy_kind(extent_.bytes);
  } else if (has_short_gaps(work)) {
    registered_ = peer_.view_.ranges(checks_.cache);
  }
}

Outcome HostRead::run() {
  Outcome outcome = sums_.empty() ? move_all() : move_and_sum_all();
  if (outcome.ok() && mapped_) {
    const Outcome alive = peer_.prove();  // a dead peer's mapping can still be read
    if (!alive.ok()) {
      return alive;
    }
  }
  if (outcome.ok() || outcome.code == Code::kRemoteFault) {
    // A guard that was killed meanwhile explains a fault and invalidates a success.
    const Outcome after = guards();
    if (!after.ok()) {
      return after;
    }
  }
  return outcome;
}

Outcome HostRead::move_all() const {
  CopyPool& pool = CopyPool::instance();
  const std::size_t fetched = registered_.empty() ? kDataIovecs : kDataIovecs / 2;
  const Division division = division_for(extent_, pool.threads(), mapped_ ? kMaxIovecs : fetched);
  if (division.single) {
    return batch({0, 0, extent_.bytes});
  }
  const std::vector<Batch> batches = divide(work_, division.batch_bytes, division.batch_pieces);
  return pool.run(batches.size(), [&](std::size_t i) { return batch(batches[i]); });
}

Outcome HostRead::guards() const {
  const PublishedView& view = peer_.view_;
  const bool live = view.live(checks_.link) && view.live(checks_.cache) && view.live(checks_.key);
  return live ? Outcome{} : Outcome::failure(Code::kGone);
}

Outcome HostRead::before_batch() const {
  if (peer_.node_->closed()) {
    return Outcome::failure(Code::kClosed);
  }
  if (peer_.closed()) {
    return Outcome::failure(Code::kCancelled);
  }
  if (checks_.more) {
    const Outcome more = checks_.more();
    if (!more.ok()) {
      return more;
    }
  }
  if (now_ns() >= checks_.deadline_ns) {
    return Outcome::failure(Code::kTimeout);
  }
  return guards();
}

Outcome HostRead::batch(const Batch& batch) const {
  const Use writing(local_entry_, checks_.local.value);
  const bool local_gone = checks_.local.named() && !writing;
  const bool on_host = local_entry_ == nullptr || local_entry_->on_host();
  if (!local_gone && on_host && !mapped_) {
    const Outcome fetched = fetch(batch);
    return fetched.ok() && !sums_.empty() ? sum(batch, fetched) : fetched;
  }
  const Outcome before = before_batch();
  if (!before.ok()) {
    return before;
  }
  if (local_gone) {
    return Outcome::failure(Code::kLocalGone);
  }
  return on_host ? copy_mapped(batch) : place_on_device(batch);
}

Outcome HostRead::place_on_device(const Batch& batch) const {
  if (peer_.address_.pid != ::getpid() || !sums_.empty()) {
    return Outcome::failure(Code::kSystem, EOPNOTSUPP);
  }
  iovec* local = room().local.data();
  iovec* own = room().remote.data();
  const std::size_t count = fill_iovecs(work_, batch, local, own);
  return cuda::copy_pairs(local_entry_->device(), local, own, count);
}

const MappedSegment* HostRead::segment_of(std::uint64_t address, std::uint64_t length) const {
  for (const MappedSegment& segment : *segments_) {
    if (segment.contains(address, length) && peer_.view_.live(segment.guard)) {
      return &segment;
    }
  }
  return nullptr;
}

bool HostRead::all_mapped() const {
  if (segments_ == nullptr || segments_->empty()) {
    return false;
  }
  const MappedSegment* last = nullptr;
  for (std::size_t i = 0; i < work_.size(); ++i) {
    if (last != nullptr && last->contains(work_.remote[i], work_.length[i])) {
      continue;
    }
    last = segment_of(work_.remote[i], work_.length[i]);
    if (last == nullptr) {
      return false;
    }
  }
  return true;
}

Outcome HostRead::copy_mapped(const Batch& batch) const {
  iovec* local = room().local.data();
  iovec* remote = room().remote.data();
  const std::size_t count = fill_iovecs(work_, batch, local, remote);
  const MappedSegment* segment = nullptr;
  for (std::size_t i = 0; i < count; ++i) {
    const auto address = reinterpret_cast<std::uint64_t>(remote[i].iov_base);
    if (segment == nullptr || !segment->contains(address, remote[i].iov_len)) {
      segment = segment_of(address, remote[i].iov_len);
      if (segment == nullptr) {
        return Outcome::failure(Code::kGone);
      }
    }
    // It is only read; iovec has no const.
    remote[i].iov_base = const_cast<std::byte*>(segment->data + (address - segment->begin));
  }
  const CopyFault fault = sums_.empty() ? guarded_copy(local, remote, count, kind_)
                                        : copy_and_sum(batch, local, remote, count);
  if (!fault.none()) {
    const Code code = fault.side == FaultSide::kSource ? Code::kRemoteFault : Code::kLocalFault;
    return Outcome::failure(code, 0,
                            static_cast<std::int64_t>(descriptor_of(work_, batch, fault.piece)));
  }
  return {Code::kOk, 0, -1, batch.bytes};
}

Outcome HostRead::fetch(const Batch& batch) const {
  Room& own = room();
  iovec* local = own.local.data();
  iovec* remote = own.remote.data();
  const std::size_t count = fill_iovecs(work_, batch, local, remote);
  Stretches& stretches = own.stretches;
  stretches.join(local, remote, count, registered_);
  const bool present = peer_.proof_present() && peer_.presence_.all_present(stretches.remote());
  // Right before the system call: a process that is stopped between the two reads when it
  // continues.
  const Outcome before = before_batch();
  if (!before.ok()) {
    return before;
  }
  if (!present) {
    return Outcome::failure(Code::kSystem, EAGAIN);
  }
  Proof shown{};
  stretches.add({shown.data(), shown.size()}, {pointer(peer_.proof_address_), shown.size()});
  const std::span<const iovec> to = stretches.local();
  const std::span<const iovec> from = stretches.remote();
  const ssize_t moved =
      ::process_vm_readv(peer_.address_.pid, to.data(), to.size(), from.data(), from.size(), 0);
  if (moved < 0 && errno != EFAULT) {
    return Outcome::failure(code_of(errno), errno);
  }
  const std::uint64_t done = moved < 0 ? 0 : static_cast<std::uint64_t>(moved);
  const std::uint64_t gap_bytes = stretches.gap_bytes();
  if (done != batch.bytes + gap_bytes + shown.size()) {
    return finish_singly(batch, local, remote, count, gap_bytes == 0 ? done : 0);
  }
  if (shown != peer_.address_.proof) {
    return Outcome::failure(Code::kPeerDead);
  }
  return {Code::kOk, 0, -1, batch.bytes};
}

Outcome HostRead::finish_singly(const Batch& batch, const iovec* local, const iovec* remote,
                                std::size_t count, std::uint64_t moved) const {
  std::uint64_t passed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    passed += local[i].iov_len;
    if (passed <= moved) {
      continue;
    }
    const ssize_t got = ::process_vm_readv(peer_.address_.pid, local + i, 1, remote + i, 1, 0);
    if (got < 0 && errno != EFAULT) {
      return Outcome::failure(code_of(errno), errno);
    }
    if (got >= 0 && static_cast<std::size_t>(got) == local[i].iov_len) {
      continue;
    }
    const Outcome alive = peer_.prove();
    if (!alive.ok()) {
      return alive;
    }
    const Code code = remote_readable(remote[i]) ? Code::kLocalFault : Code::kRemoteFault;
    return Outcome::failure(code, EFAULT,
                            static_cast<std::int64_t>(descriptor_of(work_, batch, i)));
  }
  const Outcome alive = peer_.prove();
  return alive.ok() ? Outcome{Code::kOk, 0, -1, batch.bytes} : alive;
}

bool HostRead::remote_readable(const iovec& range) const {
  static const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uint64_t>(range.iov_base);
  const std::uint64_t end = begin + range.iov_len;
  for (std::uint64_t address = begin; address < end;
       address = (address / page_bytes + 1) * page_bytes) {
    char byte = 0;
    const iovec local{&byte, 1};
    const iovec remote{pointer(address), 1};
    if (::process_vm_readv(peer_.address_.pid, &local, 1, &remote, 1, 0) != 1) {
      return false;
    }
  }
  return true;
}

}  // namespace ldd
