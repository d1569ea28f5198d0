// Operations of a link that ends: what the target has done and answered counts.
#include <poll.h>
#include <sys/socket.h>

#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "check.h"
#include "lanes/initiator/driver.h"
#include "lanes/target/server.h"

namespace {

namespace wire = ldd::wire;

struct NoMemory : ldd::BatchGuard {
  ldd::Outcome take(std::vector<ldd::Use>& /*uses*/) override { return {}; }
};

class OneConsume : public ldd::RequestSource {
 public:
  OneConsume(ldd::Ref key, std::int64_t deadline_ns) {
    request_.kind = wire::Kind::kConsume;
    request_.fixed.key_index = key.index;
    request_.fixed.key_value = key.value;
    request_.deadline_ns = deadline_ns;
  }
  std::unique_ptr<ldd::Exchange> next(ldd::ClientLane& lane) override {
    return std::exchange(done_, true)
               ? nullptr
               : std::make_unique<ldd::Exchange>(lane, request_, ldd::Cursor{}, memory_);
  }

 private:
  ldd::LaneRequest request_;
  NoMemory memory_;
  bool done_ = false;
};

// The owner of a key ends its links as soon as it has seen that the key is consumed.
void check_a_key_is_consumed_although_the_link_ends() {
  const auto target = std::make_shared<ldd::Node>(1, 256, 1 << 16);
  ldd::LaneServer server(target);
  ldd::LaneSet lanes(std::make_shared<ldd::Node>(2, 256, 1 << 16));
  const wire::SipKey to_target{std::byte{1}};
  const wire::SipKey to_initiator{std::byte{2}};
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  lanes.add(std::make_unique<ldd::ClientLane>(ldd::adopt_lane(ends[1], {to_target, to_initiator})));
  const ldd::Ref key = target->open_key();
  const std::int64_t deadline_ns = ldd::now_ns() + 20'000'000'000;
  OneConsume consume(key, deadline_ns);
  std::optional<ldd::LaneSet::Operation> operation(std::in_place, lanes);
  ldd::OperationDriver driver(lanes, consume, {1, deadline_ns, true, deadline_ns});
  driver.begin();
  server.serve(ldd::adopt_lane(ends[0], {to_initiator, to_target}), 1);
  pollfd answer{ends[1], POLLIN, 0};
  CHECK(::poll(&answer, 1, 20'000) == 1);
  CHECK(!target->consume(key));
  std::thread closing([&lanes] { lanes.close(); });
  while (lanes.open().ok()) {
    std::this_thread::yield();
  }
  CHECK(driver.finish().ok());
  operation.reset();
  closing.join();
}

}  // namespace

int main() {
  check_a_key_is_consumed_although_the_link_ends();
  return 0;
}
