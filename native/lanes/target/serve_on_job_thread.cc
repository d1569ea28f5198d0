// How an io thread lends a lane to a job thread, and when the job thread gives it back.
#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/clock.h"
#include "lanes/target/served_lane.h"
#include "lanes/target/threads.h"

namespace ldd {

ServedLane::Progress ServedLane::lend() {
  job_ = Job::kHasLane;
  stay_until_ns_ = 0;
  if (run_on_job_thread([self = shared_from_this()] { self->serve_on_job_thread(); })) {
    return Progress::kLent;
  }
  job_ = Job::kNone;
  return reply(Outcome::failure(Code::kSystem, kNoThreadErrno));
}

void ServedLane::serve_on_job_thread() noexcept {
  Progress progress = Progress::kGoOn;
  try {
    while (progress != Progress::kClose && !cancelled_.load()) {
      progress = step();
      if (progress == Progress::kWait && !stays()) {
        break;
      }
    }
  } catch (...) {  // no memory
    progress = Progress::kClose;
  }
  thread_.post([self = shared_from_this(), progress] { self->take_back(progress); });
}

// Whether to look for the next request of the lane once more. Yields the core to other threads.
bool ServedLane::stays() const {
  if (state_ != State::kPrefix || now_ns() >= stay_until_ns_ || !few_jobs()) {
    return false;
  }
  std::this_thread::yield();
  return true;
}

void ServedLane::take_back(Progress progress) {
  job_ = Job::kNone;
  if (progress == Progress::kClose || cancelled_.load()) {
    close();
    return;
  }
  on_events(0);
}

}  // namespace ldd
