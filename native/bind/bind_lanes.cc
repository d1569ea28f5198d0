// LaneServer and Lanes: the two sides of a link's data connections.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/casters.h"
#include "bind/interruptible.h"
#include "bind/released_gil.h"
#include "host/peer.h"
#include "lanes/initiator/look_all.h"
#include "lanes/initiator/operations.h"
#include "lanes/socket.h"
#include "lanes/target/server.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;
using ldd::ChecksumQuestion;
using ldd::HostPeer;
using ldd::Lanes;
using ldd::LaneServer;
using ldd::LaneSocket;
using ldd::Outcome;
using ldd::Ref;
using Release = nb::call_guard<ReleasedGil>;

Outcome read_ranges(Lanes& lanes, const BorrowedU64& descriptors, Ref local_ref, Ref cache_ref,
                    Ref key_ref, std::uint64_t version, std::int64_t deadline_ns) {
  return interruptible([&] {
    return lanes.read(ldd::descriptors_of(descriptors),
                      {local_ref, cache_ref, key_ref, version, deadline_ns});
  });
}

// The peer's threads gather the bytes, this process reads them from there.
Outcome gather_ranges(Lanes& lanes, HostPeer& host, const BorrowedU64& descriptors, Ref local_ref,
                      Ref link_ref, Ref cache_ref, Ref key_ref, std::uint64_t version,
                      std::int64_t deadline_ns) {
  const ldd::ReadChecks checks{local_ref, link_ref, cache_ref, key_ref, deadline_ns, nullptr};
  return interruptible([&] {
    const ldd::Descriptors work = ldd::descriptors_of(descriptors);
    ldd::measure(work);  // throws if a range wraps
    if (!host.all_present(work)) {
      return Outcome::failure(ldd::Code::kSystem, EAGAIN);
    }
    return lanes.gather(work, {local_ref, cache_ref, key_ref, version, deadline_ns},
                        [&](const ldd::Descriptors& part) { return host.read(part, checks); });
  });
}

template <Outcome (Lanes::*operation)(const ldd::Descriptors&, const ldd::LaneChecks&)>
Outcome send_ranges(Lanes& lanes, const BorrowedU64& descriptors, Ref local_ref, Ref cache_ref,
                    std::uint64_t version, std::int64_t deadline_ns) {
  return interruptible([&] {
    return (lanes.*operation)(ldd::descriptors_of(descriptors),
                              {local_ref, cache_ref, {}, version, deadline_ns});
  });
}

Outcome probe_ranges(Lanes& lanes, const BorrowedU64& remote, const BorrowedU64& length,
                     Ref cache_ref, Ref key_ref, std::uint64_t version, std::int64_t deadline_ns) {
  return interruptible([&] {
    const ldd::Descriptors work = ldd::descriptors_of(remote, remote, length);
    return lanes.probe(work.remote, work.length, {{}, cache_ref, key_ref, version, deadline_ns});
  });
}

std::unique_ptr<ChecksumQuestion> ask_checksum(Lanes& lanes, const BorrowedU64& remote,
                                               const BorrowedU64& length, Ref cache_ref,
                                               Ref key_ref, std::uint64_t version,
                                               std::int64_t deadline_ns) {
  const ldd::LaneChecks checks{{}, cache_ref, key_ref, version, deadline_ns};
  return interruptible([&] {
    return std::make_unique<ChecksumQuestion>(lanes, remote.span(), length.span(), checks);
  });
}

std::pair<Outcome, nb::bytes> answer_of(ChecksumQuestion& question) {
  const ChecksumQuestion::Answer answer = interruptible([&] { return question.wait(); });
  const std::vector<std::uint32_t>& sums = answer.second;
  return {answer.first, nb::bytes(sums.data(), sums.size() * sizeof(std::uint32_t))};
}

std::vector<Outcome> ping_all(const std::vector<Lanes*>& links, std::int64_t deadline_ns) {
  if (std::find(links.begin(), links.end(), nullptr) != links.end()) {
    throw std::invalid_argument("links must be Lanes, got None");
  }
  const ReleasedGil release;
  return Lanes::ping_all(links, deadline_ns);
}

std::pair<Outcome, nb::bytes> read_log(Lanes& lanes, std::uint64_t offset, std::uint64_t size,
                                       std::int64_t deadline_ns) {
  const std::pair<Outcome, std::vector<std::byte>> result =
      interruptible([&] { return lanes.read_log(offset, size, deadline_ns); });
  return {result.first, nb::bytes(result.second.data(), result.second.size())};
}

std::pair<nb::bytes, std::vector<std::size_t>> look_all(const std::vector<Lanes*>& links,
                                                        bool prune) {
  ldd::Look found;
  {
    const ReleasedGil release;
    found = ldd::look_all(links, prune);
  }
  const std::vector<std::uint64_t>& traffic = found.traffic;
  return {nb::bytes(traffic.data(), traffic.size() * sizeof(std::uint64_t)), found.incomplete};
}

ldd::wire::SipKey key_of(const nb::bytes& bytes, const char* name) {
  ldd::wire::SipKey key{};
  if (bytes.size() != key.size()) {
    throw std::invalid_argument(std::string(name) + " must be 16 bytes long, got " +
                                std::to_string(bytes.size()));
  }
  std::memcpy(key.data(), bytes.data(), key.size());
  return key;
}

LaneSocket taken(LaneSocket& socket) {
  if (!socket.valid()) {
    throw std::invalid_argument("the lane's socket has been taken over or closed");
  }
  return std::move(socket);
}

void make_socket(LaneSocket* self, int fd, const nb::bytes& send_key, const nb::bytes& receive_key,
                 std::int64_t clock_offset_ns) {
  const ldd::LaneTerms terms{key_of(send_key, "send_key"), key_of(receive_key, "receive_key"),
                             clock_offset_ns};
  new (self) LaneSocket(ldd::adopt_lane(fd, terms));
}

void bind_socket(nb::module_& module) {
  nb::class_<LaneSocket>(module, "LaneSocket",
                         "A connected, authenticated socket for a lane. Passing it to a LaneServer "
                         "or Lanes\n"
                         "transfers its ownership, once.")
      .def(
          "__init__", make_socket, "fd"_a, "send_key"_a, "receive_key"_a,
          "clock_offset_ns"_a = std::int64_t{0},
          "Take ownership of a socket, also if it raises OSError, but not if a key is not 16 bytes "
          "long.\n\n"
          "The keys are of the tags of frames sent to, and received from, the other end.\n"
          "clock_offset_ns must not exceed the other end's CLOCK_MONOTONIC minus the local one.")
      .def("close", &LaneSocket::reset,
           "Close it, unless its ownership was transferred. Idempotent.");
}

void bind_server(nb::module_& module) {
  nb::class_<LaneServer>(
      module, "LaneServer",
      "Serves the lanes of an instance's links with a few native threads. Thread-safe.")
      .def(nb::init<std::shared_ptr<ldd::Node>>(), "node"_a, Release())
      .def(
          "serve",
          [](LaneServer& server, LaneSocket& socket, std::uint64_t link_id) {
            server.serve(taken(socket), link_id);
          },
          "socket"_a, "link_id"_a, Release(),
          "Serve the peer on a lane. Takes ownership of it, also if it raises OSError.")
      .def("attach_host", &LaneServer::attach_host, "link_id"_a, "host_peer"_a, Release(),
           "Serve that link's pushes by reading the peer's memory.")
      .def("attach_landing", &LaneServer::attach_landing, "link_id"_a, "landing"_a, Release(),
           "Serve that link's pushes that cannot be served otherwise by reading landing slots of "
           "this process.")
      .def("drop_link", &LaneServer::drop_link, "link_id"_a, Release(),
           "Close the link's lanes. When it returns, none of its operations accesses memory any "
           "more.")
      .def("link_lanes", &LaneServer::link_lanes, "link_id"_a, Release(),
           "Return the number of open lanes of the link.")
      .def(
          "take_offences",
          [](LaneServer& server) {
            std::vector<std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>> taken;
            for (const ldd::Offences& each : server.take_offences()) {
              taken.emplace_back(each.link_id, each.malformed, each.strayed);
            }
            return taken;
          },
          "Return the requests since the last call that no correct peer sends: [(link_id,\n"
          "malformed frames, pushes of bytes outside the initiator's entry), ...].")
      .def("statistics", &LaneServer::statistics, Release(),
           "Return counts since the start: requests, refused, protocol_errors, strayed_pushes, "
           "bytes by "
           "kind; and lanes.")
      .def("close", &LaneServer::close, Release(), "Drop every link and stop serving. Idempotent.");
}

void bind_client(nb::module_& module) {
  nb::class_<ChecksumQuestion>(module, "ChecksumQuestion",
                               "A request for checksums of the peer's memory. It holds a lane "
                               "until `wait` returns;\n"
                               "its owner must not wait for another lane meanwhile.")
      .def("wait", answer_of,
           "Return (outcome, CRC-32C of each range as native uint32). RuntimeError if called "
           "again.");
  nb::class_<Lanes>(
      module, "Lanes",
      "The initiator's side of a link's lanes. Thread-safe.\n\n"
      "An operation runs on the calling thread and ends by deadline_ns (time.monotonic_ns); one\n"
      "in which the peer writes may wait 40 ms more until the peer has stopped. Outcomes are\n"
      "(code, errno, index, moved_bytes). NO_LANE: no lane is left, so nothing was sent.")
      .def(nb::init<std::shared_ptr<ldd::Node>, std::uint64_t>(), "node"_a, "link_id"_a, Release())
      .def(
          "add", [](Lanes& lanes, LaneSocket& socket) { lanes.add(taken(socket)); }, "socket"_a,
          Release(),
          "Take ownership of a lane, also if it raises OSError. All must lead to one peer.")
      .def("count", &Lanes::count, Release(), "Return the number of open lanes.")
      .def("prune", &Lanes::prune, Release(),
           "Close idle lanes that the peer has closed. Returns the number of lanes that remain "
           "open.")
      .def(
          "need",
          [](Lanes& lanes, std::size_t client, std::size_t served, LaneServer& server) {
            lanes.need(client, served, server.activity(lanes.link_id()));
          },
          "client"_a, "served"_a, "server"_a,
          "Say how many lanes the link needs in each direction, and which server serves its peer,\n"
          "for look_all.")
      .def("wants_more", &Lanes::wants_more,
           "Whether an operation had to wait for a lane, or could have used more than there were.")
      .def("read", read_ranges, "descriptors"_a, "local_ref"_a, "cache_ref"_a, "key_ref"_a,
           "version"_a, "deadline_ns"_a,
           "Read remote ranges into local ones; descriptors as for HostPeer.read.")
      .def("gather", gather_ranges, "host_peer"_a, "descriptors"_a, "local_ref"_a, "link_ref"_a,
           "cache_ref"_a, "key_ref"_a, "version"_a, "deadline_ns"_a,
           "Have the peer's threads gather remote ranges, and read them from there (same host).\n\n"
           "For many short ranges. An outcome need not name a descriptor: after one other than OK, "
           "GONE,\n"
           "LOCAL_GONE, CLOSED or CANCELLED, HostPeer.read tells more. SYSTEM: EAGAIN if pages of\n"
           "the peer are absent, EOPNOTSUPP for ranges of more than 128 KiB, or if the peer does\n"
           "not gather for this link, ENOMEM if it has no buffer.")
      .def("write", send_ranges<&Lanes::write>, "descriptors"_a, "local_ref"_a, "cache_ref"_a,
           "version"_a, "deadline_ns"_a,
           "Write local ranges to remote ones. OK means that they were written there.")
      .def("push", send_ranges<&Lanes::push>, "descriptors"_a, "local_ref"_a, "cache_ref"_a,
           "version"_a, "deadline_ns"_a,
           "As write, but the peer's threads fetch the bytes from this process (same host).\n\n"
           "Without a local_ref the bytes are in the peer's landing slots, and local counts from "
           "there.")
      .def("probe", probe_ranges, "remote"_a, "length"_a, "cache_ref"_a, "key_ref"_a, "version"_a,
           "deadline_ns"_a, "Make the peer check that it can read each page of remote ranges.")
      .def("ask_checksum", ask_checksum, "remote"_a, "length"_a, "cache_ref"_a, "key_ref"_a,
           "version"_a, "deadline_ns"_a, nb::keep_alive<0, 1>(),
           "Request the CRC-32C of each remote range, which the peer's threads compute.")
      .def(
          "consume",
          [](Lanes& lanes, std::uint64_t index, std::uint64_t value, std::int64_t deadline_ns) {
            return interruptible([&] { return lanes.consume({index, value}, deadline_ns); });
          },
          "index"_a, "value"_a, "deadline_ns"_a,
          "Consume a key of the peer. OK for exactly one of all callers.")
      .def(
          "version",
          [](Lanes& lanes, std::int64_t deadline_ns) {
            return interruptible([&] { return lanes.version(deadline_ns); });
          },
          "deadline_ns"_a, "Return (outcome, version of the peer's directory).")
      .def("read_log", read_log, "offset"_a, "size"_a, "deadline_ns"_a,
           "Return (outcome, bytes of the peer's directory log), clamped to the log's capacity.")
      .def(
          "ping",
          [](Lanes& lanes, std::int64_t deadline_ns) {
            return interruptible([&] { return lanes.ping(deadline_ns); });
          },
          "deadline_ns"_a, "Make one round trip on a free lane.")
      .def("close", &Lanes::close, Release(),
           "End running operations (CANCELLED), wait for them, close the lanes. Idempotent.");
}

}  // namespace

void bind_lanes(nb::module_& module);
void bind_lanes(nb::module_& module) {
  bind_socket(module);
  bind_server(module);
  bind_client(module);
  module.def(
      "look_all", look_all, "links"_a.noconvert(), "prune"_a,
      "Look at the lanes of many links, without blocking; with `prune` free lanes that the peer "
      "has\n"
      "closed are closed. Returns (native uint64 of each link that changes with each answer and\n"
      "each request of its peer, places of links with fewer lanes than they need).");
  module.def(
      "ping_all", ping_all, "links"_a, "deadline_ns"_a,
      "Ping the peers of many links at once, on one free lane each. Returns outcomes, in order.\n"
      "A link whose lanes are all in use gets TIMEOUT at once.");
}
