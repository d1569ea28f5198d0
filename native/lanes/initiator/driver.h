// Runs the exchanges of one operation over one or several lanes, on the calling thread and, if the
// plan says so, on copy workers.
#pragma once

#include <poll.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/outcome.h"
#include "lanes/initiator/exchange.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// The requests of one operation, in order; each goes to whichever lane is free.
class RequestSource {
 public:
  virtual ~RequestSource() = default;
  // The next request as an exchange on `lane`; null when none is left.
  virtual std::unique_ptr<Exchange> next(ClientLane& lane) = 0;
  // Called when the request on `lane` has ended with ok, before the lane gets the next one; on the
  // thread that drives the lane. What it returns counts as the outcome of the request.
  virtual Outcome answered(ClientLane& /*lane*/) { return {}; }
};

struct OperationPlan {
  std::size_t lanes = 1;         // at most
  std::int64_t deadline_ns = 0;  // for taking a lane, and for everything if the target does not act
  // Whether the target accesses its memory for this operation. The end of a failed one then waits,
  // for a moment, until the target has stopped.
  bool target_acts = false;
  // The deadline of the exchanges if the target acts; the requests carry it.
  std::int64_t give_up_ns = 0;
  // At most, the caller's thread included; each drives a part of the lanes. For run_operation()
  // only.
  std::size_t threads = 1;
  // Shared by those threads: set when the caller interrupts the operation.
  std::atomic<bool>* interrupted = nullptr;
};

// When to give up an operation in which the target acts. A part of the remaining time is reserved
// for waiting until the target has stopped. The call then overruns its deadline by little, and on a
// busy machine the rest of the 100 ms by which a call may be late remains.
std::int64_t give_up_ns(std::int64_t deadline_ns);

// Returns the first failure, or ok, with moved_bytes summed over all requests. `value` receives the
// extra word of the last reply.
Outcome run_operation(LaneSet& lanes, RequestSource& requests, const OperationPlan& plan,
                      std::uint64_t* value = nullptr);

// One operation in two steps, so that the caller can work between them. `lanes` and `requests` must
// outlive it. Destroyed before finish(), it gives the operation up.
class OperationDriver {
 public:
  OperationDriver(LaneSet& lanes, RequestSource& requests, const OperationPlan& plan);
  OperationDriver(const OperationDriver&) = delete;
  OperationDriver& operator=(const OperationDriver&) = delete;
  ~OperationDriver() { abandon(); }

  // Takes lanes, waiting for the first, and sends as much as their sockets accept.
  void begin();
  // The same with lanes that are free now, if any.
  void begin_if_free();
  Outcome finish();  // once
  [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
  struct Active {
    LaneSet::Lane lane;
    std::unique_ptr<Exchange> exchange;
  };

  void begin_on(std::vector<LaneSet::Lane>& taken);
  void start_next(LaneSet::Lane lane);
  void fail(const Outcome& why);
  void step_all();
  bool wait();
  bool spin();
  [[nodiscard]] int longest_wait_ms() const;
  bool interrupted(bool signaled);
  void abandon();

  // What wakes this thread while it sleeps.
  struct Sleep {
    explicit Sleep(LaneSet& lanes) : watch(lanes, alarm) {}
    LaneSet::Alarm alarm;
    LaneSet::Watch watch;
  };

  LaneSet& lanes_;
  RequestSource& requests_;
  OperationPlan plan_;
  std::int64_t end_ns_;
  std::vector<Active> active_;
  std::vector<pollfd> polled_;
  std::optional<Sleep> sleep_;  // from the first time that polling for a moment was not enough
  Outcome failure_;
  bool busy_ = false;  // some lane can go on without waiting
  std::int64_t spin_until_ns_ = 0;
  std::uint64_t moved_bytes_ = 0;
  std::uint64_t value_ = 0;
};

}  // namespace ldd
