// Entries: once close() has returned, no thread has a use, however many threads try.
#include <atomic>
#include <vector>

#include "check.h"
#include "memory/node.h"

namespace {

using ldd::Entry;
using ldd::Node;
using ldd::Ref;
using ldd::Use;

constexpr std::uint64_t kBegin = 0x10000;
constexpr std::uint64_t kEnd = 0x20000;

void check_ranges() {
  Node node(1, 64, 4096);
  const Ref ref = node.entries().open({{100, 200}, {200, 300}, {250, 260}, {400, 500}}, true);
  const auto entry = node.entries().find(ref);
  CHECK(entry->contains(100, 200) && entry->contains(300, 0) && entry->contains(499, 1));
  CHECK(!entry->contains(99, 1) && !entry->contains(299, 2) && !entry->contains(350, 1));
  CHECK(!entry->contains(450, ~std::uint64_t{0}) && !entry->contains(~std::uint64_t{0}, 2));
  CHECK(node.entries().find_holding(410, 20).first == entry);
  CHECK(node.entries().find_holding(310, 1).first == nullptr);
}

void check_overlapping_entries() {
  Node node(1, 64, 4096);
  ldd::Entries& entries = node.entries();
  const auto holder = [&](std::uint64_t address, std::uint64_t length) {
    const auto [entry, value] = entries.find_holding(address, length);
    CHECK(entry == nullptr || node.view().live({entry->index(), value}));
    return entry == nullptr ? 0 : entry->index();
  };
  entries.open({{0, 10'000}}, false);  // peers may not touch it
  const Ref outer = entries.open({{100, 900}}, true);
  const Ref inner = entries.open({{200, 300}, {600, 700}}, true);
  const Ref across = entries.open({{800, 1200}}, true);
  CHECK(holder(100, 800) == outer.index && holder(250, 100) == outer.index);
  CHECK(holder(850, 100) == across.index && holder(850, 200) == across.index);
  CHECK(holder(700, 300) == 0 && holder(99, 1) == 0 && holder(1199, 2) == 0);
  CHECK(holder(150, ~std::uint64_t{0}) == 0);

  CHECK(entries.close(outer));
  CHECK(holder(200, 100) == inner.index && holder(620, 80) == inner.index);
  CHECK(holder(250, 100) == 0 && holder(650, 100) == 0);
  const std::uint64_t value = entries.reopen(inner);
  CHECK(holder(200, 100) == inner.index && entries.find_holding(200, 100).second == value);
  const Ref twin = entries.open({{200, 300}}, true);
  CHECK(entries.close({inner.index, value}));
  CHECK(holder(200, 100) == twin.index && holder(620, 80) == 0);
  CHECK(entries.close(twin) && entries.close(across) && holder(850, 1) == 0);
}

// A peer chooses which ranges it asks for, and an io thread looks each of them up.
void check_steps_of_a_search() {
  constexpr std::uint64_t kEntries = 60'000;
  constexpr std::uint64_t kQuestions = 65'536;
  ldd::RangeIndex index;
  for (std::uint64_t i = 0; i < kEntries; ++i) {  // each overlaps the ten before and after it
    index.add({i * 4096, (i + 10) * 4096}, i);
    index.add({i * 4096 + 8, i * 4096 + 16}, kEntries + i);  // nested
  }
  std::size_t steps = 0;
  for (std::uint64_t i = 0; i < kQuestions; ++i) {
    const std::uint64_t address = i * 7919 % kEntries * 4096;
    CHECK(index.find(address, 10 * 4096, &steps) != nullptr);
    CHECK(index.find(address, 10 * 4096 + 1, &steps) == nullptr);
  }
  CHECK(steps < kQuestions * 2 * 60);
  for (std::uint64_t i = 0; i < kEntries; ++i) {
    index.remove({i * 4096, (i + 10) * 4096}, i);
  }
  CHECK(index.find(4096, 4096) == nullptr && *index.find(4096 + 8, 8) == kEntries + 1);
}

// `inside` is plain on purpose: the thread sanitizer sees any use that outlives the entry.
void check_closing_excludes_users() {
  Node node(1, 64, 4096);
  for (int round = 0; round < 300; ++round) {
    const Ref ref = node.entries().open({{kBegin, kEnd}}, true);
    std::vector<int> inside(3, 0);
    std::atomic<int> finished{0};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < inside.size(); ++i) {
      threads.emplace_back([&, i] {
        for (;;) {
          const auto entry = node.entries().find(ref);
          const Use use(entry, ref.value);
          if (!use) {
            break;
          }
          ++inside[i];
        }
        finished.fetch_add(1);
      });
    }
    if (round % 2 == 0) {
      CHECK(node.entries().close(ref));
    } else {
      const std::uint64_t value = node.entries().reopen(ref);
      CHECK(value == ref.value + 2);
      CHECK(node.entries().close({ref.index, value}));
    }
    for (int& each : inside) {
      each = -1;  // the memory is the owner's again
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    for (const int each : inside) {
      CHECK(each == -1);
    }
  }
}

void check_one_closer_wins() {
  Node node(1, 64, 4096);
  for (int round = 0; round < 300; ++round) {
    const Ref ref = node.entries().open({{kBegin, kEnd}}, true);
    const Ref key = node.open_key();
    std::atomic<int> closed{0};
    std::atomic<int> consumed{0};
    ldd_test::on_threads(3, [&](std::size_t) {
      closed.fetch_add(node.entries().close(ref) ? 1 : 0);
      consumed.fetch_add(node.consume(key) ? 1 : 0);
    });
    CHECK(closed.load() == 1 && consumed.load() == 1);
    CHECK(node.take_consumed().size() == 1);
    CHECK(!node.close_key(key) && !node.close_key(key));
  }
}

}  // namespace

int main() {
  check_ranges();
  check_overlapping_entries();
  check_steps_of_a_search();
  check_closing_excludes_users();
  check_one_closer_wins();
}
