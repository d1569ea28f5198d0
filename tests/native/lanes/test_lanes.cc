// Lanes between two instances of one process, from several threads, with entries and links that go
// away meanwhile; the program to run under the thread and address sanitizers.
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <vector>

#include "base/clock.h"
#include "check.h"
#include "host/peer.h"
#include "lanes/initiator/operations.h"
#include "lanes/target/server.h"

namespace {

namespace wire = ldd::wire;
using ldd::Code;

constexpr std::uint64_t kSize = 4 * 1024 * 1024;
constexpr std::uint64_t kBlock = 16 * 1024;

std::int64_t soon() { return ldd::now_ns() + 20'000'000'000; }

struct Link {
  // An entry of the initiator over `own`, which pushes are from.
  [[nodiscard]] ldd::Ref open_own(std::vector<std::byte>& own) const {
    const auto begin = reinterpret_cast<std::uint64_t>(own.data());
    return initiator->entries().open({{begin, begin + own.size()}}, true);
  }

  explicit Link(std::size_t count) {
    memory.assign(kSize, std::byte{5});
    const auto begin = reinterpret_cast<std::uint64_t>(memory.data());
    entry = target->entries().open({{begin, begin + kSize}}, true);
    for (std::size_t i = 0; i < count; ++i) {
      int ends[2];
      CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
      wire::SipKey to_target{std::byte{1}};
      wire::SipKey to_initiator{std::byte{2}};
      server.serve(ldd::adopt_lane(ends[0], {to_initiator, to_target}), 1);
      lanes.add(ldd::adopt_lane(ends[1], {to_target, to_initiator}));
    }
    const auto& page = initiator->published();
    host = std::make_shared<ldd::HostPeer>(
        target,
        ldd::PeerAddress{::getpid(), initiator->incarnation(), page.address(), page.fd(),
                         page.size_bytes(), initiator->self().index, initiator->own_proof()});
    server.attach_host(1, host);
  }

  std::shared_ptr<ldd::Node> target = std::make_shared<ldd::Node>(1, 256, 1 << 16);
  std::shared_ptr<ldd::Node> initiator = std::make_shared<ldd::Node>(2, 256, 1 << 16);
  ldd::LaneServer server{target};
  ldd::Lanes lanes{initiator, 1};
  std::vector<std::byte> memory;
  ldd::Ref entry;
  std::shared_ptr<ldd::HostPeer> host;
};

// Descriptors between a thread's own memory and its own share of the target's.
struct Work {
  Work(Link& link, std::vector<std::byte>& own, std::uint64_t first, std::uint64_t bytes) {
    for (std::uint64_t at = 0; at < bytes; at += kBlock) {
      local.push_back(reinterpret_cast<std::uint64_t>(own.data()) + at);
      remote.push_back(reinterpret_cast<std::uint64_t>(link.memory.data()) + first + at);
      length.push_back(kBlock);
    }
  }
  [[nodiscard]] ldd::Descriptors view() const { return {local, remote, length}; }

  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;
};

void check_threads_share_a_link() {
  Link link(2);
  constexpr std::uint64_t kShare = kSize / 4;
  ldd_test::on_threads(4, [&](std::size_t i) {
    std::vector<std::byte> own(kShare, std::byte{static_cast<unsigned char>(i)});
    const Work work(link, own, i * kShare, kShare);
    const ldd::Ref local = link.open_own(own);
    for (int round = 0; round < 20; ++round) {
      const ldd::LaneChecks checks{local, link.entry, {}, 0, soon()};
      CHECK(link.lanes.write(work.view(), checks).ok());
      std::fill(own.begin(), own.end(), std::byte{0});
      CHECK(link.lanes.read(work.view(), checks).ok());
      CHECK(own[kShare - 1] == std::byte{static_cast<unsigned char>(i)});
      CHECK(link.lanes.push(work.view(), checks).ok());
      CHECK(link.lanes.ping(soon()).ok());
    }
  });
}

// After a short push a job thread keeps the lane for a moment, and serves what comes.
void check_short_pushes_share_a_lane_with_other_requests() {
  Link link(1);
  ldd_test::on_threads(3, [&](std::size_t i) {
    std::vector<std::byte> own(kBlock, std::byte{static_cast<unsigned char>(i + 1)});
    const Work work(link, own, i * kBlock, kBlock);
    const ldd::Ref local = link.open_own(own);
    for (int round = 0; round < 300; ++round) {
      const ldd::LaneChecks checks{local, link.entry, {}, 0, soon()};
      CHECK(link.lanes.push(work.view(), checks).ok());
      if (round % 3 == 0) {
        CHECK(link.lanes.probe(work.remote, work.length, checks).ok());
      } else if (round % 3 == 1) {
        std::fill(own.begin(), own.end(), std::byte{0});
        CHECK(link.lanes.read(work.view(), checks).ok());
        CHECK(own.back() == std::byte{static_cast<unsigned char>(i + 1)});
      } else {
        CHECK(link.lanes.write(work.view(), checks).ok());
        CHECK(
            ldd::ChecksumQuestion(link.lanes, work.remote, work.length, checks).wait().first.ok());
      }
    }
  });
  CHECK(link.server.statistics().at("pushed_bytes") == 3 * 300 * kBlock);
}

void check_entries_close_under_running_operations() {
  Link link(2);
  std::atomic<bool> stop{false};
  ldd_test::on_threads(4, [&](std::size_t i) {
    if (i == 0) {
      ldd::Ref live = link.entry;
      for (int round = 0; round < 200; ++round) {
        const ldd::Ref before = live;
        CHECK(link.target->entries().reopen(before) == before.value + 2);
        // Nobody may write it now under the old reference: plain stores, which a sanitizer watches.
        CHECK(link.target->entries().close({before.index, before.value + 2}));
        std::fill(link.memory.begin(), link.memory.end(), std::byte{1});
        const auto begin = reinterpret_cast<std::uint64_t>(link.memory.data());
        const ldd::Ref again = link.target->entries().open({{begin, begin + kSize}}, true);
        CHECK(again.index == before.index);
        live = again;
        ::usleep(1000);
      }
      stop = true;
      return;
    }
    std::vector<std::byte> own(kSize / 4);
    const Work work(link, own, i * kSize / 4, kSize / 4);
    const ldd::Ref local = link.open_own(own);
    while (!stop) {
      const ldd::Ref now{link.entry.index, link.target->view().guard(link.entry.index)};
      const ldd::LaneChecks checks{local, now, {}, 0, soon()};
      const ldd::Outcome outcome = i == 1   ? link.lanes.read(work.view(), checks)
                                   : i == 2 ? link.lanes.write(work.view(), checks)
                                            : link.lanes.push(work.view(), checks);
      CHECK(outcome.ok() || outcome.code == Code::kGone);
    }
  });
  CHECK(link.lanes.count() == 2);
}

void check_links_drop_and_close_under_running_operations() {
  for (int round = 0; round < 20; ++round) {
    Link link(2);
    std::atomic<int> started{0};
    ldd_test::on_threads(4, [&](std::size_t i) {
      if (i == 0) {
        while (started < 3) {
          ::usleep(100);
        }
        if (round % 2 == 0) {
          link.server.drop_link(1);
          std::fill(link.memory.begin(), link.memory.end(), std::byte{1});
        } else {
          link.lanes.close();
        }
        return;
      }
      std::vector<std::byte> own(kSize / 4);
      const Work work(link, own, i * kSize / 4, i == 3 ? kBlock : kSize / 4);
      const ldd::Ref local = link.open_own(own);
      ++started;
      ldd::Outcome outcome;
      while (outcome.ok()) {
        const ldd::LaneChecks checks{local, link.entry, {}, 0, soon()};
        outcome = i == 1   ? link.lanes.read(work.view(), checks)
                  : i == 2 ? link.lanes.write(work.view(), checks)
                           : link.lanes.push(work.view(), checks);
      }
      const bool no_lane_left = round % 2 == 0 && outcome.code == Code::kNoLane;
      CHECK(no_lane_left || outcome.code == (round % 2 == 0 ? Code::kPeerDead : Code::kCancelled));
    });
  }
}

}  // namespace

int main() {
  check_threads_share_a_link();
  check_short_pushes_share_a_lane_with_other_requests();
  check_entries_close_under_running_operations();
  check_links_drop_and_close_under_running_operations();
  return 0;
}
