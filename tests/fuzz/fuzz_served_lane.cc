// A served lane, which is given the input as what its initiator sends. Whatever that is: memory
// that is not registered, or not accessible, is neither written nor sent; every answer is a whole
// frame; the lane lets go of everything when it ends.
//
// The first byte of the input chooses: how many bytes arrive at a time, whether there is a host
// peer to push, and whether the frames get no tags. All memory and all guards are the same in every
// run.
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <functional>
#include <future>
#include <thread>

#include "arena.h"
#include "base/clock.h"
#include "host/peer.h"
#include "lanes/target/io_threads.h"
#include "lanes/target/served_lane.h"
#include "lanes/target/served_links.h"
#include "wire/frames.h"

namespace {

namespace wire = ldd::wire;
using ldd_fuzz::Arena;
using ldd_fuzz::kBase;
using ldd_fuzz::kPage;

constexpr std::uint64_t kLink = 1;
constexpr std::uint64_t kEnd = kBase + 3 * kPage;
// The entries, in this order, so that their guards are 1, 2 and 3, each of value 1.
constexpr ldd::Range kAccessible{kBase + 1024, kBase + 2048};
constexpr ldd::Range kPrivate{kBase + kPage, kBase + kPage + 1024};
constexpr ldd::Range kFaulty{kEnd - 512, kEnd + 512};  // its second half is not there
constexpr int kMostTurns = 100'000;

// What never changes, and costs too much to make for each input.
ldd::IoThread& io_thread() {
  static auto* const thread = new ldd::IoThread;
  return *thread;
}

// Runs `task` where the lane lives, since its jobs end there, and waits for it.
void on_io_thread(const std::function<void()>& task) {
  std::promise<void> done;
  io_thread().post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

struct Served {
  explicit Served(bool with_host) {
    const Arena& arena = Arena::get();
    arena.reset();
    arena.open(kAccessible.begin, kAccessible.end);
    arena.open(kFaulty.begin, kFaulty.end);
    refs = {node->entries().open({kAccessible}, true), node->entries().open({kPrivate}, false),
            node->entries().open({kFaulty}, true)};
    node->open_key();
    node->published().append(std::as_bytes(std::span("a record of the directory")));
    if (with_host) {
      const auto& page = node->published();
      links->attach_host(
          kLink,
          std::make_shared<ldd::HostPeer>(
              node, ldd::PeerAddress{::getpid(), node->incarnation(), page.address(), page.fd(),
                                     page.size_bytes(), node->self().index, node->own_proof()}));
    }
    lane = std::make_shared<ldd::ServedLane>(links, kLink, ldd::adopt_lane(ends.peer_fd(), {}),
                                             io_thread());
    CHECK(links->add(kLink, lane));
  }

  [[nodiscard]] bool open() const { return lane->fd() >= 0; }
  [[nodiscard]] std::size_t unread() const {
    int bytes = 0;
    CHECK(::ioctl(lane->fd(), FIONREAD, &bytes) == 0);
    return static_cast<std::size_t>(bytes);
  }

  std::shared_ptr<ldd::Node> node = std::make_shared<ldd::Node>(1, 16, 4096);
  std::shared_ptr<ldd::ServedLinks> links = std::make_shared<ldd::ServedLinks>(node);
  std::array<ldd::Ref, 3> refs;
  ldd_fuzz::Ends ends;
  std::shared_ptr<ldd::ServedLane> lane;
};

// Lets the lane work until it has closed, or there is nothing left to do; returns what it said.
std::vector<std::byte> converse(Served& served, std::span<const std::byte> input,
                                std::size_t piece) {
  std::vector<std::byte> said;
  for (int turn = 0; served.open(); ++turn) {
    CHECK(turn < kMostTurns);
    const std::size_t fed = served.ends.send(input.first(std::min(piece, input.size())));
    input = input.subspan(fed);
    on_io_thread([&] { served.lane->on_events(EPOLLIN | EPOLLOUT); });
    while (served.lane->has_job()) {
      std::this_thread::yield();
    }
    on_io_thread([] {});  // what the job's end has made the lane do
    const std::size_t heard = served.ends.drain(said);
    if (heard == 0 && input.empty() && (!served.open() || served.unread() == 0)) {
      break;
    }
  }
  return said;
}

void check_said(std::span<const std::byte> said, bool may_hold_secrets) {
  wire::Tags tags;
  std::vector<std::byte> answer;
  while (!said.empty()) {
    CHECK(said.size() >= wire::kHeadBytes);
    const auto header = wire::decode_header(said.first<wire::kHeaderBytes>());
    CHECK(header && !wire::is_request(header->kind));
    CHECK(said.size() >= wire::kHeadBytes + header->body_bytes);
    const auto body = said.subspan(wire::kHeadBytes, header->body_bytes);
    const bool chunk = header->kind == wire::Kind::kChunk;
    // Of an answer nothing here knows which request it is of; both ways to cover it are tried.
    std::vector<std::byte> more(body.begin(), chunk ? body.begin() : body.end());
    more.insert(more.end(), answer.begin(), answer.end());
    wire::Tags with_answer = tags;
    const bool right = tags.check(said.first(wire::kHeadBytes), chunk ? body.first(0) : body);
    CHECK(right || (!chunk && with_answer.check(said.first(wire::kHeadBytes), more)));
    answer.assign(body.begin(), chunk ? body.end() : body.begin());
    if (header->kind == wire::Kind::kOutcome) {
      CHECK(wire::decode_outcome(body.first<wire::kOutcomeBytes>()));
    } else if (header->kind == wire::Kind::kChunk && !may_hold_secrets) {
      CHECK(std::find(body.begin(), body.end(), ldd_fuzz::kSecret) == body.end());
    }
    said = said.subspan(wire::kHeadBytes + header->body_bytes);
  }
}

// Sums of memory that peers may read may hold any byte.
bool asks_for_checksums(std::span<const std::byte> input) {
  const auto opening = wire::encode_header({wire::Kind::kChecksum, 0, 0, 0});
  constexpr std::ptrdiff_t kMagicVersionKind = 6;
  return std::search(input.begin(), input.end(), opening.begin(),
                     opening.begin() + kMagicVersionKind) != input.end();
}

void check_memory() {
  const Arena& arena = Arena::get();
  CHECK(arena.untouched(kBase, kAccessible.begin));
  CHECK(arena.untouched(kAccessible.end, kFaulty.begin));  // kPrivate included
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2 || size > ldd_fuzz::kMaxInput) {
    return 0;
  }
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const unsigned choice = data[0];
  const std::vector<std::byte> frames = (choice & 0x80) == 0
                                            ? ldd_fuzz::sealed(input)
                                            : std::vector<std::byte>(input.begin(), input.end());
  const std::size_t piece = (choice & 0x7E) == 0 ? frames.size() : (choice & 0x7E);
  Served served((choice & 1) != 0);
  const std::vector<std::byte> said = converse(served, frames, piece);
  // It may have written that byte where peers may, or pushed it there, and read it back.
  const bool may_hold_secrets =
      (choice & 1) != 0 || asks_for_checksums(input) ||
      std::find(input.begin(), input.end(), ldd_fuzz::kSecret) != input.end();
  check_said(said, may_hold_secrets);
  check_memory();
  served.ends.hang_up();
  if (served.open()) {
    served.lane->on_events(EPOLLIN | EPOLLRDHUP | EPOLLHUP);
  }
  CHECK(!served.open() && served.links->count() == 0);
  for (const ldd::Ref ref : served.refs) {
    CHECK(served.node->entries().close(ref));  // returns when no use is left
  }
  return 0;
}
