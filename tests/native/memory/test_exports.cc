// The table of exports: found by address, gone when closed, and never mistaken for what had its
// row.
#include <cstring>
#include <stdexcept>

#include "check.h"
#include "memory/node.h"

namespace {

using ldd::Export;
using ldd::Node;
using ldd::Ref;

Export of(std::uint64_t begin, std::uint64_t end, std::uint8_t byte) {
  Export made{.range = {begin, end}};
  made.sharing = byte;
  made.gpu.fill(std::byte{byte});
  made.handle.fill(std::byte{byte});
  return made;
}

void check_rows() {
  Node node(1, 64, 4096);
  CHECK(!node.view().exports_any() && !node.view().find_export(0, 1));
  const Ref first = node.published().open_export(of(0x1000, 0x3000, 1));
  const Ref second = node.published().open_export(of(0x3000, 0x4000, 2));
  CHECK(node.view().exports_any());
  const auto found = node.view().find_export(0x2000, 0x1000);
  CHECK(found && found->first.range.begin == 0x1000 && found->first.handle[63] == std::byte{1});
  CHECK(found->first.sharing == 1);
  CHECK(found->second.index == first.index && found->second.value == first.value);
  CHECK(!node.view().find_export(0x2000, 0x1001));  // in two
  CHECK(!node.view().find_export(0x2000, ~std::uint64_t{0}));
  node.published().close_export(first);
  CHECK(!node.view().export_live(first) && !node.view().find_export(0x2000, 1));
  CHECK(node.view().export_live(second));
  const Ref again = node.published().open_export(of(0x1000, 0x3000, 3));
  CHECK(again.index == first.index && again.value != first.value);
  CHECK(!node.view().export_live(first) && node.view().export_live(again));
  node.published().close_export(first);  // closed before: changes nothing
  CHECK(node.view().export_live(again));
  CHECK(!node.view().export_live({ldd::kExportCapacity, 1}));
}

void check_full() {
  Node node(1, 64, 4096);
  for (std::uint64_t i = 0; i < ldd::kExportCapacity; ++i) {
    node.published().open_export(of(i, i + 1, 1));
  }
  bool refused = false;
  try {
    node.published().open_export(of(0, 1, 1));
  } catch (const std::length_error&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  check_rows();
  check_full();
  return 0;
}
