// Entries: once close() has returned nobody is inside, however many threads try.
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
  check_closing_excludes_users();
  check_one_closer_wins();
}
