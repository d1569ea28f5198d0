// Node and Segment.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/outcome.h"
#include "bind/casters.h"
#include "bind/released_gil.h"
#include "lanes/target/touch.h"
#include "memory/node.h"
#include "memory/segment.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;
using ldd::Node;
using ldd::Outcome;
using ldd::Ref;
using ldd::Segment;

std::span<const std::byte> bytes_of(const nb::bytes& bytes) {
  return {static_cast<const std::byte*>(bytes.data()), bytes.size()};
}

Outcome touch(std::shared_ptr<Node> node, const BorrowedU64& addresses, const BorrowedU64& length,
              Ref entry, std::int64_t deadline_ns) {
  const auto begins = addresses.span();
  const auto lengths = length.span();
  const ReleasedGil release;
  return ldd::touch_entry(std::move(node), entry, {begins.begin(), begins.end()},
                          {lengths.begin(), lengths.end()}, deadline_ns);
}

Ref open_entry(Node& node, const BorrowedU64& addresses, const BorrowedU64& sizes, bool accessible,
               int device) {
  const auto begins = addresses.span();
  const auto lengths = sizes.span();
  if (begins.size() != lengths.size()) {
    throw nb::value_error("addresses and sizes differ in length");
  }
  std::vector<ldd::Range> ranges;
  ranges.reserve(begins.size());
  for (std::size_t i = 0; i < begins.size(); ++i) {
    ranges.push_back({begins[i], begins[i] + lengths[i]});
  }
  return node.entries().open(std::move(ranges), accessible, device);
}

// Owned by its shared_ptr only. If its Python object owned it, the last native thread that releases
// it would need the GIL, and would wait for a busy interpreter or end with the process.
std::shared_ptr<Node> make_node(std::uint64_t incarnation, std::uint64_t guard_capacity,
                                std::uint64_t log_capacity) {
  return std::make_shared<Node>(incarnation, guard_capacity, log_capacity);
}

void bind_node(nb::module_& module) {
  nb::class_<Node>(
      module, "Node",
      "One instance: its published page (guards, directory) and its entries.\n\n"
      "Thread-safe. A guard is (index, value): live while its word equals the odd value. Peers\n"
      "on the same host read guards and directory without help from this process.")
      .def(nb::new_(&make_node), "incarnation"_a, "guard_capacity"_a = std::uint64_t{1} << 20,
           "log_capacity"_a = std::uint64_t{64} << 20,
           "Create the published page. OSError if the memory cannot be allocated.")
      .def_prop_ro("incarnation", &Node::incarnation, "Random 64-bit name of this instance.")
      .def_prop_rw(
          "copy_way", [](const Node& node) { return static_cast<int>(node.copy_way()); },
          [](Node& node, int way) {
            if (way < 0 || way > static_cast<int>(ldd::CopyWay::kEngine)) {
              throw nb::value_error("copy_way is 0, 1 or 2");
            }
            node.set_copy_way(static_cast<ldd::CopyWay>(way));
          },
          "How memory of GPUs is copied: 0 by the size of the descriptors, 1 by a kernel where one "
          "can,\n2 by copy engines.")
      .def_prop_ro(
          "published_fd", [](Node& node) { return node.published().fd(); },
          "The sealed memory file that peers on the same host map read-only.")
      .def_prop_ro(
          "published_bytes", [](Node& node) { return node.published().size_bytes(); },
          "Size of that file in bytes.")
      .def_prop_ro(
          "page_address", [](Node& node) { return node.published().address(); },
          "Its address in this process, where peers read the proof of their link.")
      .def_prop_ro("consumed_fd", &Node::consumed_fd,
                   "An eventfd, readable while consumed() would return keys.")
      .def(
          "version", [](const Node& node) { return node.view().version(); },
          "Return the directory's version: era << 40 | bytes. The era is odd during a rewrite.")
      .def(
          "append",
          [](Node& node, const nb::bytes& record) {
            const auto bytes = bytes_of(record);
            const ReleasedGil release;
            node.published().append(bytes);
          },
          "record"_a,
          "Append one directory record. ValueError if the log is full and must be rewritten.")
      .def(
          "rewrite",
          [](Node& node, const nb::bytes& records) {
            const auto bytes = bytes_of(records);
            const ReleasedGil release;
            node.published().rewrite(bytes);
          },
          "records"_a, "Replace the whole directory. ValueError if it does not fit.")
      .def(
          "read_log",
          [](const Node& node, std::uint64_t offset, std::uint64_t size) {
            const auto bytes = [&] {
              const ReleasedGil release;
              return node.view().read_log(offset, size);
            }();
            return nb::bytes(bytes.data(), bytes.size());
          },
          "offset"_a, "size"_a,
          "Return directory bytes [offset, offset + size), clamped to the log.")
      .def("open_guard", &Node::open_guard,
           "Open the guard of a link or a pool. ValueError if no guard is left.")
      .def(
          "close_guard",
          [](Node& node, std::uint64_t index, std::uint64_t value) {
            return node.close_guard({index, value});
          },
          "index"_a, "value"_a, "Kill and free the guard. False if it was not live at that value.")
      .def("open_key", &Node::open_key,
           "Open the guard of a key, which a peer can consume. ValueError if no guard is left.")
      .def(
          "close_key",
          [](Node& node, std::uint64_t index, std::uint64_t value) {
            return node.close_key({index, value});
          },
          "index"_a, "value"_a,
          "Kill and free the guard of a key. False if it was not live at that value.")
      .def(
          "show_proof",
          [](Node& node, Ref link, const nb::bytes& proof) {
            node.published().show_proof(link, ldd::proof_of(proof));
          },
          "link_ref"_a, "proof"_a,
          "Show the 16 bytes that prove to the peer of a link that this page is its other "
          "end's.\n\n"
          "ValueError if the link's guard is not open.")
      .def(
          "guard", [](const Node& node, std::uint64_t index) { return node.view().guard(index); },
          "index"_a, "Return the guard's current word; 0 outside the page.")
      .def("open_entry", open_entry, "addresses"_a, "sizes"_a, "accessible"_a,
           "device"_a = ldd::kHostMemory,
           "Register the address ranges of a cache. ValueError if one wraps or no guard is left."
           "\n\ndevice is the ordinal of the accelerator that has the memory, -1 for host memory.")
      .def(
          "close_entry",
          [](Node& node, std::uint64_t index, std::uint64_t value) {
            return node.entries().close({index, value});
          },
          "index"_a, "value"_a, nb::call_guard<ReleasedGil>(),
          "Kill the entry and wait, for at most one batch, until no local thread accesses its "
          "memory.\n\n"
          "False if it was not live at that value.")
      .def(
          "reopen_entry",
          [](Node& node, std::uint64_t index, std::uint64_t value) {
            return node.entries().reopen({index, value});
          },
          "index"_a, "value"_a, nb::call_guard<ReleasedGil>(),
          "Kill the entry, wait, and make it live again. Returns the new value, 0 if it was not "
          "live.")
      .def(
          "suspend_entry",
          [](Node& node, std::uint64_t index, std::uint64_t value) {
            return node.entries().suspend({index, value});
          },
          "index"_a, "value"_a, nb::call_guard<ReleasedGil>(),
          "Kill the entry and wait, as close_entry(), but keep it for resume_entry().")
      .def(
          "resume_entry",
          [](Node& node, std::uint64_t index) { return node.entries().resume(index); }, "index"_a,
          "Make a suspended entry live again. Returns the new value.")
      .def("touch", touch, "addresses"_a, "length"_a, "entry_ref"_a, "deadline_ns"_a,
           "Bring pages of an entry into memory, on a thread of the library.\n\n"
           "Returns (code, errno, index, 0): OK, LOCAL_GONE, LOCAL_FAULT or DENIED (outside the\n"
           "entry) with the range's index, or TIMEOUT at the deadline, even if the pages never "
           "come.")
      .def("consumed", &Node::take_consumed,
           "Return the keys that peers consumed since the last call.")
      .def("close", &Node::close,
           "Kill the instance's guard; operations of this instance end with CLOSED. Idempotent.");
}

void bind_segment(nb::module_& module) {
  nb::class_<Segment>(module, "Segment",
                      "Memory of a pool: a sealed memory file, mapped read-write.")
      .def(
          "__init__",
          [](Segment* self, std::uint64_t size, const std::string& name) {
            new (self) Segment(name, size);
          },
          "size"_a, "name"_a,
          "Pages are committed at the first access. OSError if it cannot be created.")
      .def_prop_ro("fd", &Segment::fd,
                   "The memory file, for peers on the same host; -1 once it is closed.")
      .def_prop_ro(
          "address",
          [](const Segment& segment) { return reinterpret_cast<std::uint64_t>(segment.data()); },
          "Its address; 0 after close().")
      .def_prop_ro("size", &Segment::size_bytes, "Size in bytes; 0 after close().")
      .def("close_file", &Segment::close_file, "Close only the file; the memory stays. Idempotent.")
      .def("close", &Segment::close,
           "Unmap it. The memory must not be in use any more. Idempotent.");
}

}  // namespace

void bind_memory(nb::module_& module);
void bind_memory(nb::module_& module) {
  bind_node(module);
  bind_segment(module);
}
