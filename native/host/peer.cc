#include "host/peer.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "base/clock.h"
#include "base/interrupt.h"
#include "cuda/job.h"
#include "host/gpu_read.h"
#include "host/read.h"
#include "host/remote_file.h"

namespace ldd {

namespace {

constexpr std::int64_t kLookAgainNs = 1'000'000;

PublishedView view_of(const MappedRegion& page, std::uint64_t incarnation) {
  try {
    return {page.bytes(), incarnation};
  } catch (const std::invalid_argument& error) {
    throw std::system_error(EINVAL, std::generic_category(), error.what());
  }
}

MappedRegion page_of(const PeerAddress& address) {
  RemoteFile file = map_remote_file(address.pid, address.published_fd, address.published_bytes);
  // Only its owner has a page mapped writable. Another process that reads it, as this one does now,
  // must not pass for the owner.
  if (!maps_file_at(address.pid, file.fd.get(), address.page_address, address.published_bytes,
                    true)) {
    throw std::system_error(EINVAL, std::generic_category(),
                            "the process does not have the page mapped as its owner has");
  }
  return std::move(file.mapping);
}

}  // namespace

// Counts a running read, and takes the segments it may use.
class HostPeer::Running {
 public:
  explicit Running(HostPeer& peer) : peer_(peer) {
    const std::lock_guard lock(peer_.mutex_);
    ++peer_.running_;
    segments_ = peer_.segments_;
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() {
    const std::lock_guard lock(peer_.mutex_);
    if (--peer_.running_ == 0 && peer_.closed()) {
      peer_.left_.notify_all();
    }
  }
  [[nodiscard]] const std::shared_ptr<const SegmentList>& segments() const { return segments_; }

 private:
  HostPeer& peer_;
  std::shared_ptr<const SegmentList> segments_;
};

HostPeer::HostPeer(std::shared_ptr<Node> node, const PeerAddress& address)
    : node_(std::move(node)),
      address_(address),
      page_(page_of(address)),
      view_(view_of(page_, address.incarnation)),
      presence_(address.pid) {
  const std::optional<std::uint64_t> offset = view_.proof_offset(address.link_index);
  if (!offset) {
    throw std::system_error(EINVAL, std::generic_category(), "the page has no such link");
  }
  proof_address_ = address.page_address + *offset;
  const Outcome proof = prove();
  if (!proof.ok()) {
    const int error_number = proof.sys_errno != 0 ? proof.sys_errno : ESRCH;
    const std::string process = "process " + std::to_string(address.pid);
    throw std::system_error(error_number, std::generic_category(),
                            proof.sys_errno != 0
                                ? "cannot read the memory of " + process
                                : process + " does not show the proof of this link");
  }
}

HostPeer::~HostPeer() { close(); }

std::shared_ptr<HostPeer> HostPeer::own(std::shared_ptr<Node> node) {
  const Published& page = node->published();
  const PeerAddress address{::getpid(),        node->incarnation(), page.address(),   page.fd(),
                            page.size_bytes(), node->self().index,  node->own_proof()};
  return std::make_shared<HostPeer>(std::move(node), address);
}

bool HostPeer::proof_present() const {
  const std::int64_t now = now_ns();
  if (now - proof_seen_ns_.load(std::memory_order_relaxed) < kLookAgainNs) {
    return true;
  }
  const iovec proof{reinterpret_cast<void*>(proof_address_), sizeof(Proof)};
  if (!presence_.all_present({&proof, 1})) {
    return false;
  }
  proof_seen_ns_.store(now, std::memory_order_relaxed);
  return true;
}

Outcome HostPeer::prove() const {
  if (!proof_present()) {
    return Outcome::failure(Code::kSystem, EAGAIN);
  }
  Proof shown{};
  const iovec local{shown.data(), shown.size()};
  const iovec remote{reinterpret_cast<void*>(proof_address_), shown.size()};
  if (::process_vm_readv(address_.pid, &local, 1, &remote, 1, 0) !=
      static_cast<ssize_t>(shown.size())) {
    // EFAULT: no memory at that address, so another program runs under that pid now.
    const bool other = errno == ESRCH || errno == EFAULT;
    return Outcome::failure(other ? Code::kPeerDead : Code::kSystem, errno);
  }
  return shown == address_.proof ? Outcome{} : Outcome::failure(Code::kPeerDead);
}

void HostPeer::map_segment(int remote_fd, std::uint64_t remote_address, std::uint64_t size_bytes,
                           Ref guard) {
  RemoteFile file = map_remote_file(address_.pid, remote_fd, size_bytes);
  if (!maps_file_at(address_.pid, file.fd.get(), remote_address, size_bytes)) {
    throw std::system_error(EINVAL, std::generic_category(),
                            "the peer's segment is not mapped where it was announced");
  }
  const std::uint64_t end = remote_address + size_bytes;
  const auto mapping = std::make_shared<const MappedRegion>(std::move(file.mapping));
  const std::lock_guard lock(mutex_);
  SegmentList list = segments_outside(remote_address, end);
  list.push_back({remote_address, end, guard, mapping, mapping->data()});
  segments_ = std::make_shared<const SegmentList>(std::move(list));
}

void HostPeer::unmap_range(std::uint64_t remote_address, std::uint64_t size_bytes) {
  if (mark_.inherited()) {
    return;  // it reads nothing, and a thread of the parent may hold the locks
  }
  constexpr auto kLast = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t end =
      size_bytes > kLast - remote_address ? kLast : remote_address + size_bytes;
  gpu_imports_.forget(remote_address, end - remote_address);
  const std::lock_guard lock(mutex_);
  segments_ = std::make_shared<const SegmentList>(segments_outside(remote_address, end));
}

SegmentList HostPeer::segments_outside(std::uint64_t begin, std::uint64_t end) const {
  SegmentList list;
  if (segments_ == nullptr) {
    return list;
  }
  for (const MappedSegment& known : *segments_) {
    if (!view_.live(known.guard)) {
      continue;
    }
    if (known.begin < begin) {
      list.push_back(known);
      list.back().end = std::min(known.end, begin);
    }
    if (known.end > end) {
      list.push_back(known);
      list.back().begin = std::max(known.begin, end);
      list.back().data += list.back().begin - known.begin;
    }
  }
  return list;
}

void HostPeer::restrict_to(std::uint64_t remote_address, std::uint64_t size_bytes) {
  if (size_bytes == 0 || remote_address + size_bytes < remote_address) {
    throw std::invalid_argument("the window is empty or wraps around the address space");
  }
  const std::lock_guard lock(mutex_);
  window_begin_ = remote_address;
  window_end_ = remote_address + size_bytes;
}

bool HostPeer::restricted() {
  const std::lock_guard lock(mutex_);
  return window_end_ != 0;
}

std::vector<Range> HostPeer::ranges(Ref entry) {
  {
    const std::lock_guard lock(mutex_);
    if (window_end_ != 0) {
      return entry.named() ? std::vector<Range>{}
                           : std::vector<Range>{{window_begin_, window_end_}};
    }
  }
  return view_.ranges(entry);
}

Outcome HostPeer::check_window(const Descriptors& work) {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  {
    const std::lock_guard lock(mutex_);
    begin = window_begin_;
    end = window_end_;
  }
  for (std::size_t i = 0; end != 0 && i < work.size(); ++i) {
    const bool starts_inside = work.remote[i] >= begin && work.remote[i] <= end;
    if (!starts_inside || work.length[i] > end - work.remote[i]) {
      return Outcome::failure(Code::kDenied, 0, static_cast<std::int64_t>(i));
    }
  }
  return {};
}

bool HostPeer::all_present(const Descriptors& work) const {
  std::vector<iovec> ranges;
  ranges.reserve(work.size());
  for (std::size_t i = 0; i < work.size(); ++i) {
    if (work.length[i] != 0) {
      ranges.push_back({reinterpret_cast<void*>(work.remote[i]), work.length[i]});
    }
  }
  return presence_.all_present(ranges);
}

Outcome HostPeer::read(const Descriptors& work, const ReadChecks& checks,
                       std::span<std::uint32_t> sums) {
  if (mark_.inherited()) {
    return Outcome::failure(Code::kClosed);
  }
  const Running running(*this);
  HostRead read(*this, work, checks, running.segments(), sums);  // throws if `work` is malformed
  const Outcome inside = check_window(work);
  if (!inside.ok()) {
    return inside;
  }
  if (!GpuRead::concerns(*this, work, checks)) {
    return read.run();
  }
  return sums.empty() ? read_gpu(work, checks) : Outcome::failure(Code::kSystem, EOPNOTSUPP);
}

Outcome HostPeer::read_gpu(const Descriptors& work, const ReadChecks& checks) {
  const auto job = std::make_shared<GpuRead>(shared_from_this(), work, checks);
  const auto more = [&] {
    if (node_->closed()) {
      return Outcome::failure(Code::kClosed);
    }
    if (closed()) {
      return Outcome::failure(Code::kCancelled);
    }
    if (Interruptible::due(false) && Interruptible::ask()) {
      return Outcome::failure(Code::kCancelled);
    }
    return checks.more ? checks.more() : Outcome{};
  };
  return cuda::run_job(job, checks.deadline_ns, more);
}

void HostPeer::close() {
  if (mark_.inherited()) {
    return;  // the parent's readers do not exist here, and its lock may be held for ever
  }
  closed_.store(true, std::memory_order_release);
  std::unique_lock lock(mutex_);
  left_.wait(lock, [&] { return running_ == 0; });
  segments_.reset();
  lock.unlock();
  gpu_imports_.clear();
}

}  // namespace ldd
