#include "host/gpu_read.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <span>
#include <string>
#include <utility>

#include "base/clock.h"
#include "copy/gpu_chunks.h"
#include "cuda/pinned.h"
#include "host/read.h"

namespace ldd {

namespace {

// The peer's host memory is read into one block of pinned memory while the GPU copies from another.
constexpr std::size_t kStagedInFlight = 2;

// What a chunk needs until its copies have ended.
struct Held {
  Use writing;
  std::shared_ptr<std::byte> staging;
};

// Ranges as this process copies them.
struct Pieces {
  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> source;
  std::vector<std::uint64_t> length;
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
  if (peer.view_.exports_any() && peer.view_.find_export(work.remote[0], 1)) {
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
  if (!view.find_export(remote_[0], 1)) {
    staged_ = true;
    return {};
  }
  const GpuOwner owner{peer_->address_.pid, in_process, [this] { return peer_->prove(); }};
  Pieces pieces;
  std::shared_ptr<const GpuMapping> last;
  for (std::size_t i = 0; i < remote_.size(); ++i) {
    // Adjacent mappings of the peer's virtual memory are mapped apart, so a range may have parts.
    for (std::uint64_t done = 0; done < length_[i];) {
      const std::uint64_t remote = remote_[i] + done;
      if (last == nullptr || !last->contains(remote, 1)) {
        const Outcome found = find(owner, remote, last);
        if (!found.ok()) {
          return found;
        }
      }
      const std::uint64_t length = std::min(length_[i] - done, last->range.end - remote);
      pieces.local.push_back(local_[i] + done);
      pieces.source.push_back(last->local_begin + (remote - last->range.begin));
      pieces.length.push_back(length);
      done += length;
    }
  }
  local_ = std::move(pieces.local);
  remote_ = std::move(pieces.source);
  length_ = std::move(pieces.length);
  if (device_ == kHostMemory && last != nullptr) {
    device_ = last->device;
  }
  on_one_gpu_ = std::all_of(mappings_.begin(), mappings_.end(),
                            [&](const auto& each) { return each.second->device == device_; });
  return {};
}

// Finds the mapping that has an address of the peer.
Outcome GpuRead::find(const GpuOwner& owner, std::uint64_t remote,
                      std::shared_ptr<const GpuMapping>& found) {
  const auto used = mappings_.upper_bound(remote);
  if (used != mappings_.begin() && std::prev(used)->second->contains(remote, 1)) {
    found = std::prev(used)->second;
    return {};
  }
  const Outcome before = before_chunk();  // the peer decides how many allocations there are
  if (!before.ok()) {
    return before;
  }
  const PublishedView& view = peer_->view_;
  Outcome outcome;
  found = peer_->gpu_imports_.find(view, owner, checks_.cache, remote, outcome);
  if (found == nullptr) {
    return view.live(checks_.cache) ? outcome : Outcome::failure(Code::kGone);
  }
  mappings_[found->range.begin] = found;
  return {};
}

Outcome GpuRead::copy_all(cuda::Device& device) {
  const cuda::Current current(device.driver(), device.context());
  if (current.result() != cuda::Result::kSuccess) {
    return cuda::outcome_of(current.result());
  }
  cuda::StreamCopies copies(device, peer_->node_->copy_way(),
                            staged_ ? kStagedInFlight : cuda::kMostInFlight);
  const std::uint64_t chunk_bytes = staged_ ? cuda::PinnedPool::kBlockBytes : cuda::kChunkBytes;
  return copy_in_chunks(copies, divide(work(), chunk_bytes, cuda::kChunkPieces),
                        [&](const Batch& chunk) { return begin_chunk(copies, chunk); });
}

Outcome GpuRead::begin_chunk(cuda::StreamCopies& copies, const Batch& chunk) {
  if (const cuda::Result room = copies.make_room(); room != cuda::Result::kSuccess) {
    return cuda::outcome_of(room);
  }
  const Outcome before = before_chunk();
  if (!before.ok()) {
    return before;
  }
  const auto held = std::make_shared<Held>();
  held->writing = Use(local_entry_, checks_.local.value, Holder::kDriver);
  if (checks_.local.named() && !held->writing) {
    return Outcome::failure(Code::kLocalGone);
  }
  std::vector<iovec> to(kMaxIovecs);
  std::vector<iovec> from(kMaxIovecs);
  const std::size_t count = fill_iovecs(work(), chunk, to.data(), from.data());
  const bool local_on_gpu = local_entry_ != nullptr && local_entry_->device() == device_;
  cuda::Side from_side = on_one_gpu_ ? cuda::Side::kOnGpu : cuda::Side::kElsewhere;
  if (staged_) {
    held->staging = cuda::PinnedPool::instance().take(copies.driver());
    if (held->staging == nullptr) {
      return Outcome::failure(Code::kSystem, ENOMEM);
    }
    const auto staging = reinterpret_cast<std::uint64_t>(held->staging.get());
    const Outcome fetched = fetch_to(staging, chunk);
    const Outcome still = fetched.ok() ? before_chunk() : fetched;
    if (!still.ok()) {
      return still;
    }
    std::uint64_t at = staging;
    for (std::size_t i = 0; i < count; ++i) {
      from[i].iov_base = reinterpret_cast<void*>(at);
      at += from[i].iov_len;
    }
    from_side = cuda::Side::kPinned;
  }
  const cuda::Side to_side = local_on_gpu ? cuda::Side::kOnGpu : cuda::Side::kElsewhere;
  return cuda::outcome_of(copies.begin({to.data(), from.data(), count, to_side, from_side}, held));
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
