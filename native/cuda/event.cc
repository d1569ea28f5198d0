#include "cuda/event.h"

#include <utility>

#include "cuda/copy.h"
#include "cuda/job.h"

namespace ldd::cuda {

namespace {

class Waiting final : public Job {
 public:
  explicit Waiting(std::shared_ptr<const Event> event) : event_(std::move(event)) {}
  Outcome run() override {
    const Result result = poll([&] { return event_->query(); }, [&] { return !stopping(); });
    return result == Result::kNotReady ? Outcome::failure(Code::kTimeout) : outcome_of(result);
  }

 private:
  std::shared_ptr<const Event> event_;
};

}  // namespace

std::shared_ptr<Event> Event::record(const Driver& driver, StreamHandle stream, int device,
                                     std::string& problem) {
  ContextHandle context = nullptr;
  if (driver.stream_get_ctx(stream, &context) != Result::kSuccess || context == nullptr) {
    // A default stream on a thread without a context, or no stream at all, which is found below.
    const Device* const found = Device::find(driver, device, problem);
    if (found == nullptr) {
      return nullptr;
    }
    context = found->context();
  }
  const Current current(driver, context);
  EventHandle handle = nullptr;
  if (const Result made = driver.event_create(&handle, kNoTiming); made != Result::kSuccess) {
    problem = describe(driver, "cuEventCreate", made);
    return nullptr;
  }
  auto event = std::make_shared<Event>(driver, context, handle, true);
  if (const Result result = driver.event_record(handle, stream); result != Result::kSuccess) {
    problem = describe(driver, "cuEventRecord", result);
    return nullptr;
  }
  return event;
}

std::shared_ptr<Event> Event::borrow(const Driver& driver, EventHandle handle, int device,
                                     std::string& problem) {
  const Device* const found = Device::find(driver, device, problem);
  return found == nullptr ? nullptr
                          : std::make_shared<Event>(driver, found->context(), handle, false);
}

Event::~Event() {
  if (!owned_ || mark_.inherited()) {
    return;  // a forked child has no driver
  }
  const Current current(driver_, context_);
  driver_.event_destroy(handle_);
}

Result Event::query() const {
  const Current current(driver_, context_);
  return current.result() == Result::kSuccess ? driver_.event_query(handle_) : current.result();
}

Outcome wait_for(std::shared_ptr<const Event> event, std::int64_t deadline_ns,
                 const std::function<Outcome()>& more) {
  return run_job(std::make_shared<Waiting>(std::move(event)), deadline_ns, more);
}

}  // namespace ldd::cuda
