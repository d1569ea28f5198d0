// Points in the streams of the program that a transfer waits for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/fork.h"
#include "base/outcome.h"
#include "cuda/device.h"

namespace ldd::cuda {

class Event {
 public:
  // Behind all work that the program has given to a stream so far. For a default stream the context
  // of the calling thread decides whose it is; without one it is of the GPU `device`. Null, with a
  // reason, if the driver refuses.
  static std::shared_ptr<Event> record(const Driver& driver, StreamHandle stream, int device,
                                       std::string& problem);
  // An event of the program, which must live until the last wait for it has ended.
  static std::shared_ptr<Event> borrow(const Driver& driver, EventHandle handle, int device,
                                       std::string& problem);
  Event(const Driver& driver, ContextHandle context, EventHandle handle, bool owned)
      : driver_(driver), context_(context), handle_(handle), owned_(owned) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();

  // The driver's answer now: kNotReady while the work before it runs.
  [[nodiscard]] Result query() const;

 private:
  const Driver& driver_;
  ContextHandle context_;
  EventHandle handle_;
  bool owned_;
  ProcessMark mark_;
};

// Waits until the event is reached, on a thread of its own (job.h), as a driver may not answer.
// kTimeout at the deadline, the failure of `more`, kLocalFault or kSystem for an error of the
// driver.
Outcome wait_for(std::shared_ptr<const Event> event, std::int64_t deadline_ns,
                 const std::function<Outcome()>& more);

}  // namespace ldd::cuda
