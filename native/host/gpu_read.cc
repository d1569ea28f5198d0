#include "host/gpu_read.h"

#include <unistd.h>

#include <cerrno>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/clock.h"
#include "host/read.h"

namespace ldd {

namespace {

// Pinned host memory for one chunk. The device's context must be current.
class Staging {
 public:
  explicit Staging(const cuda::Driver& driver) : driver_(driver) {
    result_ = driver.mem_host_alloc(&memory_, kStagedChunkBytes, cuda::kPortable);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    if (result_ == cuda::Result::kSuccess) {
      driver_.mem_free_host(memory_);
    }
  }
  [[nodiscard]] cuda::Result result() const { return result_; }
  [[nodiscard]] std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(memory_); }

 private:
  const cuda::Driver& driver_;
  void* memory_ = nullptr;
  cuda::Result result_;
};

std::vector<std::uint64_t> copied(std::span<const std::uint64_t> words) {
  return {words.begin(), words.end()};
}

}  // namespace

GpuRead::GpuRead(std::shared_ptr<HostPeer> peer, const Descriptors& work, const ReadChecks& checks)
    : peer_(std::move(peer)),
      local_(copied(work.local)),
      remote_(copied(work.remote)),
      length_(copied(work.length)),
      source_(remote_),
      checks_(checks) {
  checks_.more = nullptr;  // what it refers to may end before this does
  if (checks_.local.named()) {
    local_entry_ = peer_->node_->entries().find(checks_.local);
  }
}

bool GpuRead::concerns(const HostPeer& peer, const Descriptors& work, const ReadChecks& checks) {
  if (work.size() == 0) {
    return false;
  }
  if (!peer.uses_gpus_.load(std::memory_order_acquire)) {
    return false;
  }
  if (peer.view_.exports_any() && peer.view_.find_export(work.remote[0], work.length[0])) {
    return true;
  }
  if (!checks.local.named() || peer.address_.pid == ::getpid()) {
    return false;  // memory of this process is copied where it is
  }
  const auto entry = peer.node_->entries().find(checks.local);
  return entry != nullptr && !entry->on_host();
}

Outcome GpuRead::run() {
  if (checks_.local.named() && local_entry_ == nullptr) {
    return Outcome::failure(Code::kLocalGone);
  }
  const Outcome before = before_chunk();
  const Outcome resolved = before.ok() ? resolve() : before;
  if (!resolved.ok()) {
    return resolved;
  }
  const cuda::Loaded loaded = cuda::present_driver();
  std::string problem;
  cuda::Device* const device =
      loaded.driver == nullptr ? nullptr : cuda::Device::find(*loaded.driver, device_, problem);
  if (device == nullptr) {
    return Outcome::failure(Code::kSystem, ENODEV);
  }
  Outcome outcome = copy_all(*device);
  mappings_.clear();  // on this thread, as the driver may not return from unmapping
  if (outcome.ok()) {
    const Outcome after = after_all();
    if (!after.ok()) {
      return after;
    }
  }
  return outcome;
}

Outcome GpuRead::before_chunk() const {
  if (peer_->node_->closed()) {
    return Outcome::failure(Code::kClosed);
  }
  if (peer_->closed()) {
    return Outcome::failure(Code::kCancelled);
  }
  if (stopping() || now_ns() >= checks_.deadline_ns) {
    return Outcome::failure(Code::kTimeout);
  }
  const PublishedView& view = peer_->view_;
  const bool live = view.live(checks_.link) && view.live(checks_.cache) && view.live(checks_.key);
  return live ? Outcome{} : Outcome::failure(Code::kGone);
}

// The check after the last byte decides whether the bytes count.
Outcome GpuRead::after_all() const {
  const Outcome alive = peer_->prove();  // a dead peer's mapping can still be read
  if (!alive.ok()) {
    return alive;
  }
  const PublishedView& view = peer_->view_;
  const bool live = view.live(checks_.link) && view.live(checks_.cache) && view.live(checks_.key);
  return live ? Outcome{} : Outcome::failure(Code::kGone);
}

Outcome GpuRead::resolve() {
  const PublishedView& view = peer_->view_;
  const bool in_process = peer_->address_.pid == ::getpid();
  device_ = local_entry_ == nullptr ? kHostMemory : local_entry_->device();
  if (!view.find_export(remote_[0], length_[0])) {
    staged_ = true;
    return {};
  }
  std::shared_ptr<const GpuMapping> last;
  for (std::size_t i = 0; i < remote_.size(); ++i) {
    if (last == nullptr || !last->contains(remote_[i], length_[i])) {
      const Outcome before = before_chunk();  // the peer decides how many allocations there are
      if (!before.ok()) {
        return before;
      }
      last = peer_->gpu_imports_.find(view, checks_.cache, remote_[i], length_[i], in_process);
      if (last == nullptr) {
        return view.live(checks_.cache) ? Outcome::failure(Code::kSystem, EOPNOTSUPP)
                                        : Outcome::failure(Code::kGone);
      }
      mappings_.push_back(last);
    }
    source_[i] = last->local_begin + (remote_[i] - last->range.begin);
  }
  if (device_ == kHostMemory && last != nullptr) {
    device_ = last->device;
  }
  return {};
}

Outcome GpuRead::copy_all(cuda::Device& device) {
  const cuda::Driver& driver = device.driver();
  const cuda::Current current(driver, device.context());
  if (current.result() != cuda::Result::kSuccess) {
    return cuda::outcome_of(current.result());
  }
  const cuda::StreamLease lease(device);
  if (lease.result() != cuda::Result::kSuccess) {
    return cuda::outcome_of(lease.result());
  }
  Outcome sum;
  const std::uint64_t chunk_bytes = staged_ ? kStagedChunkBytes : kGpuChunkBytes;
  for (const Batch& chunk : divide(work(), chunk_bytes, kGpuChunkPieces)) {
    const Outcome before = before_chunk();
    const Outcome outcome = before.ok() ? copy_chunk(driver, lease.stream(), chunk) : before;
    if (!outcome.ok()) {
      sum.code = outcome.code;
      sum.sys_errno = outcome.sys_errno;
      sum.index = outcome.index;
      return sum;
    }
    sum.moved_bytes += outcome.moved_bytes;
  }
  return sum;
}

Outcome GpuRead::copy_chunk(const cuda::Driver& driver, cuda::StreamHandle stream,
                            const Batch& chunk) {
  const Use writing(local_entry_, checks_.local.value);  // until the stream is idle
  if (checks_.local.named() && !writing) {
    return Outcome::failure(Code::kLocalGone);
  }
  std::vector<iovec> to(kMaxIovecs);
  std::vector<iovec> from(kMaxIovecs);
  const std::size_t count = fill_iovecs({local_, source_, length_}, chunk, to.data(), from.data());
  std::optional<Staging> staging;
  if (staged_) {
    staging.emplace(driver);
    if (staging->result() != cuda::Result::kSuccess) {
      return cuda::outcome_of(staging->result());
    }
    const Outcome fetched = fetch_to(staging->address(), chunk);
    if (!fetched.ok()) {
      return fetched;
    }
    std::uint64_t at = staging->address();
    for (std::size_t i = 0; i < count; ++i) {
      from[i].iov_base = reinterpret_cast<void*>(at);
      at += from[i].iov_len;
    }
  }
  std::uint64_t moved = 0;
  const cuda::Result submitted = cuda::submit(driver, stream, to.data(), from.data(), count, moved);
  const cuda::Result waited = cuda::wait(driver, stream);
  Outcome outcome = cuda::outcome_of(submitted != cuda::Result::kSuccess ? submitted : waited);
  outcome.moved_bytes = outcome.ok() ? moved : 0;
  return outcome;
}

// Reads a chunk of the peer's host memory into `staging`, one range after the other.
Outcome GpuRead::fetch_to(std::uint64_t staging, const Batch& chunk) {
  std::vector<iovec> local(kMaxIovecs);
  std::vector<iovec> remote(kMaxIovecs);
  const std::size_t count = fill_iovecs(work(), chunk, local.data(), remote.data());
  std::vector<std::uint64_t> to;
  std::vector<std::uint64_t> from;
  std::vector<std::uint64_t> length;
  for (std::size_t i = 0; i < count; ++i) {
    to.push_back(staging);
    from.push_back(reinterpret_cast<std::uint64_t>(remote[i].iov_base));
    length.push_back(remote[i].iov_len);
    staging += remote[i].iov_len;
  }
  ReadChecks checks = checks_;
  checks.local = {};
  const Descriptors part{to, from, length};
  HostRead read(*peer_, part, checks, nullptr, {});
  Outcome outcome = read.run();
  if (outcome.index >= 0) {
    outcome.index = static_cast<std::int64_t>(
        descriptor_of(work(), chunk, static_cast<std::size_t>(outcome.index)));
  }
  return outcome;
}

}  // namespace ldd
