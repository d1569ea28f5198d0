// Runs the exchanges of one operation over one or several lanes, on the calling thread, and if the
// plan says so on copy workers too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/outcome.h"
#include "lanes/initiator/exchange.h"
#include "lanes/initiator/lane_set.h"

namespace ldd {

// The parts of one operation, handed out in order to whatever lane is free.
class Parts {
 public:
  virtual ~Parts() = default;
  // The next part as an exchange on `lane`; null when none is left.
  virtual std::unique_ptr<Exchange> next(ClientLane& lane) = 0;
};

struct DrivePlan {
  std::size_t lanes = 1;         // at most
  std::int64_t deadline_ns = 0;  // for a lane, and for all of it if the target does not act
  // Whether the target touches its memory for us: then the end of a failed operation waits, for a
  // moment, until the target has stopped.
  bool target_acts = false;
  // By when it has to be done if the target acts; what is asked of the target says so.
  std::int64_t give_up_ns = 0;
  // At most, the caller's included, which each drive a part of the lanes. For drive() only.
  std::size_t threads = 1;
  // Shared by those threads: set when the caller wants the operation to end.
  std::atomic<bool>* interrupted = nullptr;
};

// When to give up on an operation for which the target acts. A part of its time is kept back, for
// the target to be seen to have stopped, so that the call is late by the smaller part of that wait
// and a busy machine has the rest of the 100 ms by which a call may be late.
std::int64_t give_up_ns(std::int64_t deadline_ns);

// The first failure, or ok; moved_bytes over all parts. `value` is the last reply's extra word.
Outcome drive(LaneSet& lanes, Parts& parts, const DrivePlan& plan, std::uint64_t* value = nullptr);

// The same in two steps, for what the caller does meanwhile. Takes its lanes and sends what the
// sockets take when it is made; `lanes` and `parts` have to outlive it. Given up on if it is
// destroyed before finish().
class Drive {
 public:
  Drive(LaneSet& lanes, Parts& parts, const DrivePlan& plan);
  Drive(const Drive&) = delete;
  Drive& operator=(const Drive&) = delete;
  ~Drive();

  Outcome finish();  // once

 private:
  class Driver;
  class SharedParts;
  friend Outcome drive(LaneSet& lanes, Parts& parts, const DrivePlan& plan, std::uint64_t* value);

  static Outcome on_threads(LaneSet& lanes, Parts& parts, const DrivePlan& plan);

  std::unique_ptr<Driver> driver_;
};

}  // namespace ldd
