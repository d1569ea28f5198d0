// HostPeer: a peer process on the same host.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bind/casters.h"
#include "bind/interruptible.h"
#include "bind/released_gil.h"
#include "host/peer.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;
using ldd::Descriptors;
using ldd::HostPeer;
using ldd::Node;
using ldd::Outcome;
using ldd::Ref;

// Owned by its shared_ptr only, as Node is (bind/bind_memory.cc).
std::shared_ptr<HostPeer> open_peer(std::shared_ptr<Node> node, int pid, std::uint64_t incarnation,
                                    std::uint64_t page_address, int published_fd,
                                    std::uint64_t published_bytes, std::uint64_t link_index,
                                    const nb::bytes& proof) {
  const ldd::PeerAddress address{
      pid,        incarnation,         page_address, published_fd, published_bytes,
      link_index, ldd::proof_of(proof)};
  const ReleasedGil release;
  return std::make_shared<HostPeer>(std::move(node), address);
}

// Signal handlers run between two parts; there they may use the peer or close it.
constexpr std::uint64_t kPartBytes = std::uint64_t{64} << 20;

Outcome read_part(HostPeer& peer, const Descriptors& work, const ldd::ReadChecks& checks,
                  const ldd::Batch& part) {
  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;
  std::uint64_t offset = part.offset;
  for (std::uint64_t left = part.bytes; left > 0; offset = 0) {
    const std::size_t i = part.first + length.size();
    length.push_back(std::min(left, work.length[i] - offset));
    local.push_back(work.local[i] + offset);
    remote.push_back(work.remote[i] + offset);
    left -= length.back();
  }
  Outcome outcome = peer.read({local, remote, length}, checks);
  if (outcome.index >= 0) {
    outcome.index += static_cast<std::int64_t>(part.first);
  }
  return outcome;
}

Outcome read_in_parts(HostPeer& peer, const Descriptors& work, const ldd::ReadChecks& checks) {
  if (ldd::measure(work).bytes <= kPartBytes) {
    return peer.read(work, checks);
  }
  std::uint64_t moved_bytes = 0;
  for (const ldd::Batch& part : ldd::divide(work, kPartBytes, SIZE_MAX)) {
    Outcome outcome = read_part(peer, work, checks, part);
    moved_bytes += outcome.moved_bytes;
    if (outcome.ok() && ldd::Interruptible::due(false) && ldd::Interruptible::ask()) {
      outcome = Outcome::failure(ldd::Code::kCancelled);
    }
    if (!outcome.ok()) {
      outcome.moved_bytes = moved_bytes;
      return outcome;
    }
  }
  return {ldd::Code::kOk, 0, -1, moved_bytes};
}

Outcome read_ranges(HostPeer& peer, const BorrowedU64& descriptors, Ref local_ref, Ref link_ref,
                    Ref cache_ref, Ref key_ref, std::int64_t deadline_ns) {
  const ldd::ReadChecks checks{local_ref, link_ref, cache_ref, key_ref, deadline_ns, nullptr};
  return interruptible(
      [&] { return read_in_parts(peer, ldd::descriptors_of(descriptors), checks); });
}

std::pair<Outcome, nb::bytes> read_and_sum(HostPeer& peer, const BorrowedU64& descriptors,
                                           Ref local_ref, Ref link_ref, Ref cache_ref, Ref key_ref,
                                           std::int64_t deadline_ns) {
  const Descriptors work = ldd::descriptors_of(descriptors);
  std::vector<std::uint32_t> sums(work.size());
  Outcome outcome;
  {
    const ReleasedGil release;
    ldd::ReadChecks checks{local_ref, link_ref, cache_ref, key_ref, deadline_ns, nullptr};
    outcome = peer.read(work, checks, sums);
  }
  return {outcome, nb::bytes(sums.data(), sums.size() * sizeof(std::uint32_t))};
}

}  // namespace

void bind_host(nb::module_& module);
void bind_host(nb::module_& module) {
  nb::class_<HostPeer>(
      module, "HostPeer",
      "A peer process on the same host, read without its help. Thread-safe; keeps the node alive.")
      .def(
          nb::new_(&open_peer), "node"_a, "pid"_a, "incarnation"_a, "page_address"_a,
          "published_fd"_a, "published_bytes"_a, "link_index"_a, "proof"_a,
          "Map the peer's published page and check that the process is the other end of a link.\n\n"
          "The process must have that page mapped at page_address, writable, and show the link's\n"
          "proof there, beside the guard link_index. OSError, with the reason, if the page cannot\n"
          "be opened or mapped, belongs to another incarnation, shows another proof, or if\n"
          "process_vm_readv is not permitted.")
      .def_static("own", &HostPeer::own, "node"_a, nb::call_guard<ReleasedGil>(),
                  "Return a reader of local memory, for landing slots. OSError as above.")
      .def(
          "map_segment",
          [](HostPeer& peer, int fd, std::uint64_t remote_address, std::uint64_t size,
             Ref guard_ref) {
            const ReleasedGil release;
            peer.map_segment(fd, remote_address, size, guard_ref);
          },
          "fd"_a, "remote_address"_a, "size"_a, "guard_ref"_a = nb::make_tuple(0, 0),
          "Map pool memory of the peer; reads inside it become copies while guard_ref is live.\n\n"
          "OSError if it cannot be mapped, could be shrunk, or is not at that address in the "
          "peer.")
      .def("unmap_range", &HostPeer::unmap_range, "remote_address"_a, "size"_a,
           nb::call_guard<ReleasedGil>(),
           "Read that range through process_vm_readv from now on: it is no longer the mapped file.")
      .def(
          "restrict_to", &HostPeer::restrict_to, "remote_address"_a, "size"_a,
          nb::call_guard<ReleasedGil>(),
          "Refuse reads outside that range with DENIED. ValueError for an empty or wrapping range.")
      .def(
          "version", [](const HostPeer& peer) { return peer.view().version(); },
          "Return the current version of the peer's directory.")
      .def(
          "guard",
          [](const HostPeer& peer, std::uint64_t index) { return peer.view().guard(index); },
          "index"_a, "Return the current word of the peer's guard; 0 outside its page.")
      .def(
          "read_log",
          [](const HostPeer& peer, std::uint64_t offset, std::uint64_t size) {
            const auto bytes = [&] {
              const ReleasedGil release;
              return peer.view().read_log(offset, size);
            }();
            return nb::bytes(bytes.data(), bytes.size());
          },
          "offset"_a, "size"_a,
          "Return directory bytes [offset, offset + size), clamped; valid if version() is "
          "unchanged.")
      .def(
          "read", read_ranges, "descriptors"_a, "local_ref"_a, "link_ref"_a, "cache_ref"_a,
          "key_ref"_a, "deadline_ns"_a,
          "Copy length[i] bytes from the peer's remote[i] to local[i].\n\n"
          "The descriptors are the local addresses, the remote ones and the lengths, one after "
          "the\n"
          "other: an array of uint64, or the same as bytes.\n"
          "local_ref is a local entry, the other refs are guards of the peer; (0, 0) checks\n"
          "nothing. They are checked before every batch and after the last: OK means that all "
          "were\n"
          "live until the bytes had arrived. Returns (code, errno, index, moved_bytes): OK, GONE,\n"
          "LOCAL_GONE, TIMEOUT, PEER_DEAD, REMOTE_FAULT and LOCAL_FAULT with the descriptor's\n"
          "index, CLOSED, CANCELLED, or SYSTEM with errno: EAGAIN if pages of the peer are "
          "absent,\n"
          "EOPNOTSUPP if memory of a GPU cannot be mapped (gpu_problem), EIO if its driver fails.\n"
          "When it returns, nothing is written any more.")
      .def("read_and_sum", read_and_sum, "descriptors"_a, "local_ref"_a, "link_ref"_a,
           "cache_ref"_a, "key_ref"_a, "deadline_ns"_a,
           "As read; returns (outcome, CRC-32C of each descriptor's bytes as native uint32).")
      .def("use_gpus", &HostPeer::use_gpus,
           "Let reads map memory of GPUs that the peer exports.\n\n"
           "Before that, no handle from the peer's page goes to the driver.")
      .def_prop_ro("gpu_problem", &HostPeer::gpu_problem,
                   "Why memory of a GPU could not be mapped, most recently, or \"\".")
      .def_prop_ro("gpu_mappings", &HostPeer::gpu_mappings,
                   "The peer's allocations of GPUs that are mapped.")
      .def("close", &HostPeer::close, nb::call_guard<ReleasedGil>(),
           "End running reads with CANCELLED and wait for them. Idempotent.");
}
