#include "lanes/target/io_threads.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "lanes/target/threads.h"

namespace ldd {

namespace {

int checked(int fd, const char* what) {
  if (fd < 0) {
    throw std::system_error(errno, std::generic_category(), what);
  }
  return fd;
}

}  // namespace

IoThread::IoThread()
    : epoll_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
  start_quiet_thread([this] { run(); });
}

void IoThread::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

bool IoThread::attach(std::shared_ptr<Served> served, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = served.get();
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, served->fd(), &event) != 0) {
    return false;
  }
  Served* const key = served.get();
  served_.emplace(key, std::move(served));
  return true;
}

void IoThread::change(Served& served, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = &served;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, served.fd(), &event);
}

void IoThread::detach(Served& served) {
  const auto found = served_.find(&served);
  if (found != served_.end()) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, served.fd(), nullptr);
    detached_.push_back(std::move(found->second));
    served_.erase(found);
  }
}

void IoThread::stay_awake(std::int64_t until_ns) {
  awake_until_ns_.store(until_ns, std::memory_order_relaxed);
}

int IoThread::wait(std::span<epoll_event> events) const {
  const int most = static_cast<int>(events.size());
  while (now_ns() < awake_until_ns_.load(std::memory_order_relaxed)) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), most, 0);
    if (count != 0) {
      return count;
    }
    std::this_thread::yield();
  }
  return ::epoll_wait(epoll_.get(), events.data(), most, -1);
}

void IoThread::run_tasks() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(wake_.get(), &count, sizeof count);
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) {
    task();
  }
}

void IoThread::run() noexcept {
  std::array<epoll_event, 64> events{};
  for (;;) {
    const int count = wait(events);
    for (int i = 0; i < count; ++i) {
      auto* const served = static_cast<Served*>(events[static_cast<std::size_t>(i)].data.ptr);
      if (served == nullptr) {
        run_tasks();
      } else if (served_.contains(served)) {
        served->on_events(events[static_cast<std::size_t>(i)].events);
      }
    }
    detached_.clear();
  }
}

IoThread& IoThreads::at(std::size_t turn) {
  struct All {
    std::array<IoThread*, kThreads> threads{};
  };
  static PerProcess<All> per_process;
  return per_process.with([turn](All& all) -> IoThread& {
    IoThread*& thread = all.threads[turn % kThreads];
    if (thread == nullptr) {
      // Never ends: an idle thread costs nothing.
      thread = new IoThread;  // NOLINT(cppcoreguidelines-owning-memory)
    }
    return *thread;
  });
}

}  // namespace ldd
