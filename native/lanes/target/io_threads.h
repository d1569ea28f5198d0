// The few threads that serve the lanes of the whole process. A lane belongs to one of them for its
// lifetime; its state is accessed on that thread only, unless that thread lends it.
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

// An object of an io thread that waits for events of a descriptor.
class Served {
 public:
  virtual ~Served() = default;
  [[nodiscard]] virtual int fd() const = 0;
  // Called on the io thread. May detach the object.
  virtual void on_events(std::uint32_t events) noexcept = 0;
};

class IoThread {
 public:
  IoThread();            // throws std::system_error
  ~IoThread() = delete;  // lives as long as the process

  // Queues `task`, which must not throw, to run on this thread. Never blocks.
  void post(std::function<void()> task);

  // The following must be called on this thread.
  bool attach(std::shared_ptr<Served> served, std::uint32_t events);
  void change(Served& served, std::uint32_t events);
  void detach(Served& served);
  // Polls for events until then before sleeping: the next one is likely to arrive soon.
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
  std::atomic<std::int64_t> awake_until_ns_{0};    // atomic for the fuzzers' sake
};

class IoThreads {
 public:
  // The thread of this process that a turn falls to. They start at first use; a forked child starts
  // its own.
  static IoThread& at(std::size_t turn);

  static constexpr std::size_t kThreads = 2;
};

}  // namespace ldd
