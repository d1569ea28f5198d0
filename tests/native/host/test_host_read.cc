// Reads of one instance by another, of this same process, from many threads while entries come and
// go.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "base/clock.h"
#include "check.h"
#include "copy/pool.h"
#include "host/peer.h"
#include "memory/segment.h"

namespace {

using ldd::Code;
using ldd::HostPeer;
using ldd::Node;
using ldd::Outcome;
using ldd::Ref;
using ldd_test::kPage;
using ldd_test::Pages;

constexpr std::size_t kCount = 2048;

#if defined(__SANITIZE_THREAD__)
constexpr bool kSeesRaces = true;  // also those that are meant to happen and to be noticed
#else
constexpr bool kSeesRaces = false;
#endif

struct Owner {
  std::shared_ptr<Node> node = std::make_shared<Node>(77, 256, 4096);
  ldd::Segment segment{"test", kCount * kPage};
  Pages plain{kCount};

  Owner() {
    std::memset(segment.data(), 5, segment.size_bytes());
    std::memset(plain.data(), 5, plain.size_bytes());
  }
  [[nodiscard]] std::uint64_t begin(bool mapped) const {
    return mapped ? reinterpret_cast<std::uint64_t>(segment.data()) : plain.address();
  }
  Ref open(bool mapped) {
    return node->entries().open({{begin(mapped), begin(mapped) + kCount * kPage}}, true);
  }
  [[nodiscard]] ldd::PeerAddress address() const {
    return {::getpid(),
            node->incarnation(),
            node->published().address(),
            node->published().fd(),
            node->published().size_bytes(),
            node->self().index,
            node->own_proof()};
  }
};

struct Reader {
  std::shared_ptr<Node> node = std::make_shared<Node>(88, 256, 4096);
  HostPeer peer;
  Pages own{kCount};
  std::vector<std::uint64_t> local;
  std::vector<std::uint64_t> remote;
  std::vector<std::uint64_t> length;

  Reader(const Owner& owner, bool mapped) : peer(node, owner.address()) {
    if (mapped) {
      peer.map_segment(owner.segment.fd(), owner.begin(true), owner.segment.size_bytes(), {});
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      local.push_back(own.address() + i * kPage);
      remote.push_back(owner.begin(mapped) + i * kPage);
      length.push_back(kPage);
    }
  }
  Ref open() {
    return node->entries().open({{own.address(), own.address() + own.size_bytes()}}, true);
  }
  Outcome read(Ref to, Ref from) { return read_part(to, from, 0, 1); }
  Outcome read_part(Ref to, Ref from, std::size_t part, std::size_t parts) {
    const auto cut = [&](const std::vector<std::uint64_t>& all) {
      return std::span(all).subspan(part * kCount / parts, kCount / parts);
    };
    return peer.read({cut(local), cut(remote), cut(length)},
                     {to, {0, 1}, from, {}, ldd::now_ns() + 60'000'000'000, nullptr});
  }
};

// Once an own entry is closed its memory is the caller's: plain writes here race with nothing.
void check_own_memory_is_free_after_close(bool mapped) {
  Owner owner;
  Reader reader(owner, mapped);
  const Ref from = owner.open(mapped);
  for (int round = 0; round < 20; ++round) {
    const Ref to = reader.open();
    std::atomic<int> begun{0};
    std::thread reading([&] {
      Outcome outcome;
      do {
        outcome = reader.read(to, from);
        begun.store(1);
      } while (outcome.ok());
      CHECK(outcome.code == Code::kLocalGone);
    });
    while (begun.load() == 0) {
      std::this_thread::yield();
    }
    CHECK(reader.node->entries().close(to));
    std::memset(reader.own.data(), 9, reader.own.size_bytes());
    reading.join();
    for (std::size_t i = 0; i < reader.own.size_bytes(); i += kPage) {
      CHECK(reader.own.data()[i] == std::byte{9});
    }
  }
}

void check_remote_close_voids_reads(bool mapped) {
  Owner owner;
  Reader reader(owner, mapped);
  const Ref to = reader.open();
  for (int round = 0; round < 20; ++round) {
    const Ref from = owner.open(mapped);
    std::atomic<int> begun{0};
    std::thread reading([&] {
      Outcome outcome;
      do {
        outcome = reader.read(to, from);
        begun.store(1);
      } while (outcome.ok());
      CHECK(outcome.code == Code::kGone);
    });
    while (begun.load() == 0) {
      std::this_thread::yield();
    }
    CHECK(owner.node->entries().close(from));
    CHECK(reader.read(to, from).code == Code::kGone);
    reading.join();
  }
}

bool all_equal(const std::byte* bytes, std::size_t size_bytes, std::byte value) {
  return bytes[0] == value && std::memcmp(bytes, bytes + 1, size_bytes - 1) == 0;
}

// The owner writes to its memory as soon as close() has returned; a read that got any of that must
// fail.
void check_no_success_with_bytes_from_after_close(bool mapped) {
  Owner owner;
  Reader reader(owner, mapped);
  const Ref to = reader.open();
  auto* memory = reinterpret_cast<std::byte*>(owner.begin(mapped));
  for (int round = 0; round < 40; ++round) {
    const Ref from = owner.open(mapped);
    std::atomic<int> begun{0};
    std::thread reading([&] {
      while (reader.read(to, from).ok()) {
        CHECK(all_equal(reader.own.data(), reader.own.size_bytes(), std::byte{5}));
        begun.store(1);
      }
    });
    while (begun.load() == 0) {
      std::this_thread::yield();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
    CHECK(owner.node->entries().close(from));
    std::memset(memory, 6, kCount * kPage);
    reading.join();
    std::memset(memory, 5, kCount * kPage);
  }
}

void check_closing_the_peer_ends_reads(bool mapped) {
  Owner owner;
  const Ref from = owner.open(mapped);
  for (int round = 0; round < 10; ++round) {
    Reader reader(owner, mapped);
    const Ref to = reader.open();
    std::atomic<int> ended{0};
    std::thread closing([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      reader.peer.close();
      std::memset(reader.own.data(), 9, reader.own.size_bytes());
    });
    ldd_test::on_threads(2, [&](std::size_t i) {
      Outcome outcome;
      do {
        outcome = reader.read_part(to, from, i, 2);
      } while (outcome.ok());
      CHECK(outcome.code == Code::kCancelled);
      ended.fetch_add(1);
    });
    closing.join();
    CHECK(ended.load() == 2);
    CHECK(all_equal(reader.own.data(), reader.own.size_bytes(), std::byte{9}));
  }
}

void check_more_conditions_end_a_read() {
  Owner owner;
  Reader reader(owner, false);
  const Ref to = reader.open();
  const Ref from = owner.open(false);
  std::atomic<int> asked{0};
  const Outcome outcome = reader.peer.read(
      {reader.local, reader.remote, reader.length},
      {to, {}, from, {}, ldd::now_ns() + 60'000'000'000, [&] {
         return asked.fetch_add(1) < 3 ? Outcome{} : Outcome::failure(Code::kPeerDead, 7);
       }});
  CHECK(outcome.code == Code::kPeerDead && outcome.sys_errno == 7);
}

void check_close_waits_for_a_read() {
  Owner owner;
  Reader reader(owner, false);
  const Ref to = reader.open();
  const Ref from = owner.open(false);
  std::atomic<bool> runs{false};
  std::atomic<bool> may_end{false};
  std::atomic<bool> closed{false};
  std::thread reading([&] {
    const Outcome outcome =
        reader.peer.read({reader.local, reader.remote, reader.length},
                         {to, {}, from, {}, ldd::now_ns() + 60'000'000'000, [&] {
                            runs.store(true);
                            while (!may_end.load()) {
                              std::this_thread::yield();
                            }
                            return Outcome{};
                          }});
    CHECK(outcome.code == Code::kCancelled);
  });
  while (!runs.load()) {
    std::this_thread::yield();
  }
  std::thread closing([&] {
    reader.peer.close();
    closed.store(true);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!closed.load());
  may_end.store(true);
  reading.join();
  closing.join();
}

}  // namespace

int main() {
  ldd::CopyPool::instance().set_threads(3);
  for (const bool mapped : {false, true}) {
    check_own_memory_is_free_after_close(mapped);
    check_remote_close_voids_reads(mapped);
    check_closing_the_peer_ends_reads(mapped);
    if (!mapped || !kSeesRaces) {
      check_no_success_with_bytes_from_after_close(mapped);
    }
  }
  check_more_conditions_end_a_read();
  check_close_waits_for_a_read();
  ldd::CopyPool::instance().set_threads(1);
}
