// The initiator's lanes of one link: which operation uses which lane, and how operations are
// stopped when the link ends.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/fork.h"
#include "base/outcome.h"
#include "lanes/initiator/exchange.h"
#include "memory/node.h"

namespace ldd {

// Thread-safe.
class LaneSet {
 public:
  using Lane = std::unique_ptr<ClientLane>;

  explicit LaneSet(std::shared_ptr<Node> node);
  LaneSet(const LaneSet&) = delete;
  LaneSet& operator=(const LaneSet&) = delete;
  ~LaneSet() { close(); }

  // All lanes must lead to one target; they share the estimate of its clock. Throws
  // std::system_error when closed.
  void add(Lane lane);
  [[nodiscard]] std::size_t count() const;
  // Closes free lanes that the other end has closed. Returns how many remain open, including those
  // in use.
  std::size_t prune();

  // Appends what poll(2) needs to see that the peer has closed a free lane.
  void add_free(std::vector<pollfd>& polled) const;
  // Notes a reply of the peer, and counts them.
  void answered() { answers_.fetch_add(1, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t answers() const { return answers_.load(std::memory_order_relaxed); }

  // One operation, for as long as it uses lanes; close() waits for it.
  class Operation {
   public:
    explicit Operation(LaneSet& lanes);
    ~Operation();
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;

   private:
    LaneSet& lanes_;
  };

  // A pause of the calling thread's operation: until destroyed, the operation must neither access
  // memory nor use its lanes, and then it must check open(). close() does not wait for it.
  class Pause {
   public:
    explicit Pause(LaneSet& lanes);
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    LaneSet& lanes_;
  };

  // Wakes a thread that polls for an operation, once operations must stop. It has a descriptor only
  // while it exists, so that links on which nothing waits need none.
  class Alarm {
   public:
    Alarm();
    Alarm(const Alarm&) = delete;
    Alarm& operator=(const Alarm&) = delete;

    // Readable once operations must stop; -1, which poll(2) passes over, if the process has no
    // descriptor left. Then the thread must look from time to time.
    [[nodiscard]] int fd() const { return fd_.get(); }
    void ring() const;
    // Whether it was rung since the last call.
    [[nodiscard]] bool take() const;

   private:
    LaneFd fd_;
  };

  // Has a lane set ring an alarm, which must outlive it. Within an operation.
  class Watch {
   public:
    Watch(LaneSet& lanes, const Alarm& alarm);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    LaneSet& lanes_;
    const Alarm& alarm_;
  };

  // Asks whether to end the operation of the calling thread, which pauses meanwhile.
  bool interrupted();

  // Takes at least one free lane and at most `wanted`, waiting for the first. Fails with kTimeout
  // at the deadline, kNoLane when no lane is left, kCancelled when interrupted, or as open() does.
  Outcome take(std::size_t wanted, std::int64_t deadline_ns, std::vector<Lane>& taken);
  void give_back(Lane lane);
  // Notes that an operation could use more lanes than are open, as take() does when it has to wait.
  void want_more() { wants_more_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool wants_more() const { return wants_more_.load(std::memory_order_relaxed); }
  // Closes a lane that has failed; it no longer counts.
  void discard(Lane lane);

  // Not ok when operations must stop: kClosed or kCancelled.
  [[nodiscard]] Outcome open() const;
  [[nodiscard]] const std::shared_ptr<Node>& node() const { return node_; }

  // Stops running operations, waits for them, closes the lanes. Idempotent.
  void close();

 private:
  std::shared_ptr<Node> node_;
  ProcessMark mark_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Lane> free_;
  std::vector<const Alarm*> alarms_;
  std::shared_ptr<TargetClock> clock_;  // of the first lane
  std::size_t open_ = 0;                // free or in use
  std::size_t operations_ = 0;
  std::atomic<bool> closing_{false};
  std::atomic<bool> wants_more_{false};
  std::atomic<std::uint64_t> answers_{0};
};

}  // namespace ldd
