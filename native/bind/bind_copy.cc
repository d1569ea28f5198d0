// Copies within this process, the copy threads, and the outcome codes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bind/casters.h"
#include "bind/interruptible.h"
#include "bind/released_gil.h"
#include "copy/checksum.h"
#include "copy/crc32c.h"
#include "copy/local_copy.h"
#include "copy/pool.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;
using ldd::Code;
using ldd::Outcome;
using ldd::Ref;

Outcome copy(const BorrowedU64& destination, const BorrowedU64& source, const BorrowedU64& length,
             ldd::Node* node, Ref destination_ref, Ref source_ref, std::int64_t deadline_ns) {
  return interruptible([&] {
    return ldd::copy_batches(ldd::descriptors_of(destination, source, length),
                             {node, destination_ref, source_ref, deadline_ns});
  });
}

std::pair<Outcome, nb::bytes> checksum(const BorrowedU64& addresses, const BorrowedU64& length,
                                       ldd::Node& node, Ref ref, std::int64_t deadline_ns) {
  std::vector<std::uint32_t> sums;
  Outcome outcome;
  {
    const ReleasedGil release;
    ldd::measure(ldd::descriptors_of(addresses, addresses, length));
    sums.resize(length.span().size());
    outcome = ldd::checksum_entry(addresses.span(), length.span(), {&node, ref, deadline_ns}, sums);
  }
  return {outcome, nb::bytes(sums.data(), sums.size() * sizeof(std::uint32_t))};
}

nb::bytes probe(const BorrowedU64& addresses, const BorrowedU64& length, std::int64_t deadline_ns) {
  std::vector<std::uint8_t> readable;
  {
    const ReleasedGil release;
    ldd::measure(ldd::descriptors_of(addresses, addresses, length));
    ldd::probe_each(addresses.span(), length.span(), deadline_ns, readable);
  }
  return nb::bytes(readable.data(), readable.size());
}

void bind_codes(nb::module_& module) {
  module.attr("OK") = static_cast<int>(Code::kOk);
  module.attr("GONE") = static_cast<int>(Code::kGone);
  module.attr("LOCAL_GONE") = static_cast<int>(Code::kLocalGone);
  module.attr("TIMEOUT") = static_cast<int>(Code::kTimeout);
  module.attr("PEER_DEAD") = static_cast<int>(Code::kPeerDead);
  module.attr("REMOTE_FAULT") = static_cast<int>(Code::kRemoteFault);
  module.attr("LOCAL_FAULT") = static_cast<int>(Code::kLocalFault);
  module.attr("DENIED") = static_cast<int>(Code::kDenied);
  module.attr("STALE") = static_cast<int>(Code::kStale);
  module.attr("CLOSED") = static_cast<int>(Code::kClosed);
  module.attr("PROTOCOL") = static_cast<int>(Code::kProtocol);
  module.attr("SYSTEM") = static_cast<int>(Code::kSystem);
  module.attr("CANCELLED") = static_cast<int>(Code::kCancelled);
  module.attr("NO_LANE") = static_cast<int>(Code::kNoLane);
}

}  // namespace

void bind_copy(nb::module_& module);
void bind_copy(nb::module_& module) {
  bind_codes(module);
  module.def(
      "copy", copy, "dst"_a, "src"_a, "length"_a, "node"_a.none(), "dst_ref"_a, "src_ref"_a,
      "deadline_ns"_a,
      "Copy length[i] bytes from address src[i] to dst[i], large copies on several threads.\n\n"
      "Source and destination ranges must not overlap. With a node, dst_ref and src_ref name\n"
      "entries that must stay live; (0, 0) checks nothing. Returns (code, errno, index,\n"
      "moved_bytes): OK, TIMEOUT, CLOSED, LOCAL_GONE or LOCAL_FAULT for the destination, GONE or\n"
      "REMOTE_FAULT for the source, with the index of the pair. When it returns, nothing is\n"
      "written any more. A GPU that hangs may still complete the chunks that it was given; until\n"
      "then they keep both entries.");
  module.def(
      "checksum", checksum, "addresses"_a, "length"_a, "node"_a, "ref"_a, "deadline_ns"_a,
      "Return (outcome, CRC-32C of each range of local memory as native uint32).\n\n"
      "ref names an entry of the node that must stay live; (0, 0) checks nothing. The outcome is "
      "OK,\nTIMEOUT, CLOSED, LOCAL_GONE, or LOCAL_FAULT with the index of the range.");
  module.def(
      "probe", probe, "addresses"_a, "length"_a, "deadline_ns"_a,
      "Return one byte for each range of local memory: 1 if each of its pages can be read, else 0."
      "\n\n"
      "Omits ranges at the end that were not checked before the deadline. Runs on the calling\n"
      "thread and holds nothing, so that memory that never answers blocks only the caller.");
  module.def(
      "crc32c",
      [](const nb::bytes& data) {
        return ldd::crc32c({reinterpret_cast<const std::byte*>(data.c_str()), data.size()});
      },
      "data"_a, "Return the CRC-32C of bytes.");
  module.def(
      "set_threads", [](std::size_t count) { ldd::CopyPool::instance().set_threads(count); },
      "count"_a, nb::call_guard<ReleasedGil>(),
      "Set the number of threads per operation, the caller's included; 0 = by the cores, at most "
      "8.");
  module.def(
      "threads", [] { return ldd::CopyPool::instance().threads(); },
      "Return the number of threads per operation, the caller's included.");
}
