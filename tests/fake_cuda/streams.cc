// Streams run their operations in order, each on a thread of its own; events.
#include <algorithm>
#include <chrono>
#include <utility>

#include "state.h"

namespace fake {

Stream::Stream(Context& context, bool blocking)
    : context(context), blocking(blocking), thread_([this] { run(); }) {}

Stream::~Stream() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Stream::submit(std::function<int()> operation) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(std::move(operation));
  changed_.notify_all();
}

bool Stream::idle() {
  const std::lock_guard lock(mutex_);
  return waiting_.empty() && !busy_;
}

void Stream::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_.empty() && !busy_; });
}

void Stream::run() {
  acting_device() = context.device;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) {
      return;
    }
    const auto operation = std::move(waiting_.front());
    waiting_.pop_front();
    busy_ = true;
    lock.unlock();
    wait_while_hung(context.device);
    if (const std::uint64_t delay = delay_us(); delay != 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
    }
    if (context.error == kSuccess) {  // after an error nothing of the context acts any more
      if (const int result = operation(); result != kSuccess) {
        context.error = result;
      }
    } else {
      operation();  // events only; copies look at the context themselves
    }
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

std::shared_ptr<Stream> stream_of(void* handle, int& result) {
  Context& context = *current();
  const std::lock_guard lock(context.mutex);
  result = kSuccess;
  constexpr std::uintptr_t kDefaultStreams = 2;  // 0, 1 (legacy), 2 (of the thread)
  if (reinterpret_cast<std::uintptr_t>(handle) <= kDefaultStreams) {
    if (context.default_stream == nullptr) {
      context.default_stream = std::make_shared<Stream>(context, true);
    }
    return context.default_stream;
  }
  const auto found = context.streams.find(handle);
  if (found == context.streams.end()) {
    result = kInvalidHandle;  // of another context, or of none
    return nullptr;
  }
  return found->second;
}

namespace {

std::mutex events_mutex;
std::map<void*, std::shared_ptr<Event>>& events() {
  static auto* const all = new std::map<void*, std::shared_ptr<Event>>;
  return *all;
}

std::shared_ptr<Event> event_of(void* handle) {
  const std::lock_guard lock(events_mutex);
  const auto found = events().find(handle);
  return found == events().end() ? nullptr : found->second;
}

}  // namespace
}  // namespace fake

extern "C" {

int cuStreamCreate(void** stream, unsigned flags) {
  FAKE_CUDA_CALL(true);
  fake::Context& context = *fake::current();
  auto made = std::make_shared<fake::Stream>(context, (flags & 1) == 0);
  *stream = made.get();
  const std::lock_guard lock(context.mutex);
  context.streams.emplace(made.get(), std::move(made));
  return fake::kSuccess;
}

int cuStreamDestroy_v2(void* stream) {
  FAKE_CUDA_CALL(true);
  std::shared_ptr<fake::Stream> gone;
  {
    fake::Context& context = *fake::current();
    const std::lock_guard lock(context.mutex);
    const auto found = context.streams.find(stream);
    if (found == context.streams.end()) {
      return fake::kInvalidHandle;
    }
    gone = std::move(found->second);
    context.streams.erase(found);
  }
  return fake::kSuccess;
}

// Of a default stream: the current context. Any other names its own.
int cuStreamGetCtx(void* handle, void** context) {
  FAKE_CUDA_CALL(false);
  if (reinterpret_cast<std::uintptr_t>(handle) <= 2) {
    *context = fake::current();
    return *context == nullptr ? fake::kInvalidContext : fake::kSuccess;
  }
  for (int device = 0; device < fake::device_count(); ++device) {
    fake::Context& each = fake::context_of(device);
    const std::lock_guard lock(each.mutex);
    if (each.streams.contains(handle)) {
      *context = &each;
      return fake::kSuccess;
    }
  }
  return fake::kInvalidHandle;
}

int cuStreamQuery(void* handle) {
  FAKE_CUDA_CALL(true);
  int result = fake::kSuccess;
  const auto stream = fake::stream_of(handle, result);
  if (stream == nullptr) {
    return result;
  }
  return stream->idle() ? stream->context.error.load() : fake::kNotReady;
}

int cuStreamSynchronize(void* handle) {
  FAKE_CUDA_CALL(true);
  int result = fake::kSuccess;
  const auto stream = fake::stream_of(handle, result);
  if (stream == nullptr) {
    return result;
  }
  stream->drain();
  return stream->context.error;
}

int cuEventCreate(void** event, unsigned) {
  FAKE_CUDA_CALL(true);
  auto made = std::make_shared<fake::Event>();
  made->context = fake::current();
  *event = made.get();
  const std::lock_guard lock(fake::events_mutex);
  fake::events().emplace(made.get(), std::move(made));
  return fake::kSuccess;
}

int cuEventDestroy_v2(void* event) {
  FAKE_CUDA_CALL(true);
  const std::lock_guard lock(fake::events_mutex);
  return fake::events().erase(event) == 1 ? fake::kSuccess : fake::kInvalidHandle;
}

int cuEventRecord(void* handle, void* stream_handle) {
  FAKE_CUDA_CALL(true);
  int result = fake::kSuccess;
  const auto stream = fake::stream_of(stream_handle, result);
  const auto event = fake::event_of(handle);
  if (stream == nullptr || event == nullptr || event->context != &stream->context) {
    return fake::kInvalidHandle;
  }
  const std::lock_guard lock(event->mutex);
  const std::uint64_t number = ++event->recorded;
  stream->submit([event, number] {
    const std::lock_guard inner(event->mutex);
    event->done = std::max(event->done, number);
    event->changed.notify_all();
    return static_cast<int>(fake::kSuccess);
  });
  return fake::kSuccess;
}

int cuEventQuery(void* handle) {
  FAKE_CUDA_CALL(false);
  const auto event = fake::event_of(handle);
  if (event == nullptr) {
    return fake::kInvalidHandle;
  }
  const std::lock_guard lock(event->mutex);
  if (event->context->error != fake::kSuccess) {
    return event->context->error;
  }
  return event->done == event->recorded ? fake::kSuccess : fake::kNotReady;
}

int cuEventSynchronize(void* handle) {
  FAKE_CUDA_CALL(false);
  const auto event = fake::event_of(handle);
  if (event == nullptr) {
    return fake::kInvalidHandle;
  }
  std::unique_lock lock(event->mutex);
  const std::uint64_t wanted = event->recorded;
  event->changed.wait(lock, [&] { return event->done >= wanted; });
  return event->context->error;
}

int cuStreamWaitEvent(void* stream_handle, void* handle, unsigned) {
  FAKE_CUDA_CALL(true);
  int result = fake::kSuccess;
  const auto stream = fake::stream_of(stream_handle, result);
  const auto event = fake::event_of(handle);
  if (stream == nullptr || event == nullptr) {
    return fake::kInvalidHandle;
  }
  std::uint64_t wanted = 0;
  {
    const std::lock_guard lock(event->mutex);
    wanted = event->recorded;
  }
  stream->submit([event, wanted] {
    std::unique_lock lock(event->mutex);
    event->changed.wait(lock, [&] { return event->done >= wanted; });
    return static_cast<int>(fake::kSuccess);
  });
  return fake::kSuccess;
}
}
