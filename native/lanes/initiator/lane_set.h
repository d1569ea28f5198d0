// The initiator's lanes of one link: who uses which, and how everybody is stopped at the end.
#pragma once

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

  // The lanes lead to one target, and share what is known of its clock. Throws std::system_error
  // when closed.
  void add(Lane lane);
  [[nodiscard]] std::size_t count() const;
  // Closes free lanes that the other end has closed; how many are open then, taken ones included.
  std::size_t prune();

  // One operation, from its first lane to its last; the set waits for it when it closes.
  class Operation {
   public:
    explicit Operation(LaneSet& lanes);
    ~Operation();
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;

   private:
    LaneSet& lanes_;
  };

  // An operation of the calling thread that stands still: it neither touches memory nor uses its
  // lanes until this is destroyed, and looks at open() then. The set does not wait for it.
  class Pause {
   public:
    explicit Pause(LaneSet& lanes);
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    LaneSet& lanes_;
  };

  // Whether the caller of the operation wants it to end; the operation pauses while it is asked.
  bool interrupted();

  // Takes at least one free lane and at most `wanted`, waiting for the first; not ok when there is
  // none by the deadline, no lane is left (kNoLane), everything is being closed, or the caller
  // wants to end (kCancelled).
  Outcome take(std::size_t wanted, std::int64_t deadline_ns, std::vector<Lane>& taken);
  void give_back(Lane lane);
  // The lane has failed: it is closed and not counted any more.
  void discard(Lane lane);

  // Not ok when operations have to stop: kClosed or kCancelled.
  [[nodiscard]] Outcome open() const;
  // Readable once operations have to stop; for use within one.
  [[nodiscard]] int wake_fd() const { return wake_.get(); }
  [[nodiscard]] const std::shared_ptr<Node>& node() const { return node_; }

  // Stops running operations, waits for them, closes the lanes. Idempotent.
  void close();

 private:
  std::shared_ptr<Node> node_;
  ProcessMark mark_;
  LaneFd wake_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Lane> free_;
  std::shared_ptr<TargetClock> clock_;  // of the first lane
  std::size_t open_ = 0;                // free and taken
  std::size_t operations_ = 0;
  std::atomic<bool> closing_{false};
};

}  // namespace ldd
