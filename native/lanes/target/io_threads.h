// The few threads that serve the lanes of the whole process. A lane belongs to one of them for
// life; all its state is touched on that thread only.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "lanes/socket.h"

namespace ldd {

// Something that lives on an io thread and waits for a descriptor.
class Served {
 public:
  virtual ~Served() = default;
  [[nodiscard]] virtual int fd() const = 0;
  // On the io thread; may detach itself.
  virtual void on_events(std::uint32_t events) noexcept = 0;
};

class IoThread {
 public:
  IoThread();            // throws std::system_error
  ~IoThread() = delete;  // lives as long as the process

  // Runs `task`, which must not throw, on this thread, soon; never blocks.
  void post(std::function<void()> task);

  // The following are for tasks and events on this thread.
  bool attach(std::shared_ptr<Served> served, std::uint32_t events);
  void change(Served& served, std::uint32_t events);
  void detach(Served& served);
  // The next event is likely to come at once: look for it until then before going to sleep.
  void stay_awake(std::int64_t until_ns);

 private:
  void run() noexcept;
  int wait(std::span<epoll_event> events) const;
  void run_tasks();

  LaneFd epoll_;
  LaneFd wake_;
  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_;
  std::unordered_map<Served*, std::shared_ptr<Served>> served_;
  std::vector<std::shared_ptr<Served>> detached_;  // until the current events are done
  std::atomic<std::int64_t> awake_until_ns_{0};    // fuzzers serve lanes on a thread of their own
};

class IoThreads {
 public:
  // The threads of this process, started at first use; a forked child starts its own.
  static IoThread& next();

  static constexpr std::size_t kThreads = 2;
};

}  // namespace ldd
