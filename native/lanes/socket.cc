#include "lanes/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <system_error>
#include <unordered_set>

namespace ldd {

namespace {

constexpr int kUserTimeoutMs = 30'000;
constexpr int kKeepIdleSeconds = 10;
constexpr int kKeepIntervalSeconds = 5;
constexpr int kKeepProbes = 3;

// Never destroyed: threads may outlive static destructors.
struct Registry {
  std::mutex mutex;
  std::unordered_set<int> fds;
};

Registry& registry() {
  static Registry* const all = new Registry;  // NOLINT(cppcoreguidelines-owning-memory)
  return *all;
}

void before_fork() { registry().mutex.lock(); }
void after_fork_in_parent() { registry().mutex.unlock(); }
void after_fork_in_child() {
  // Only async-signal-safe calls; the set is intact because the fork happened under its lock.
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  for (const int fd : registry().fds) {
    if (null >= 0) {
      ::dup3(null, fd, O_CLOEXEC);
    }
  }
  if (null >= 0) {
    ::close(null);
  }
  registry().mutex.unlock();
}

[[maybe_unused]] const int kRegistered =
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

void set_option(int fd, int level, int name, int value) {
  // A failure (a Unix socket, an old kernel) costs speed, never correctness.
  ::setsockopt(fd, level, name, &value, sizeof value);
}

// Options of a lane's connection:
//
// * TCP_NODELAY: requests and outcomes are small, and the other end waits for each.
// * TCP_USER_TIMEOUT and keepalive: they detect a host that vanished, while data is in flight and
//   while none is. Operations have deadlines of their own; this is for lanes that are idle.
// * SO_SNDBUF and SO_RCVBUF are not set: that would disable the kernel's automatic tuning, which
//   goes up to net.ipv4.tcp_*mem (several MiB) as the path's delay requires, and would be capped by
//   net.core.*mem_max (208 KiB by default).
void tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes);
}

// Receives the carrier that a Unix socket may pass first. A first request that may have arrived as
// well stays in the socket.
LaneFd receive_carrier(int fd) {
  std::byte mark{};
  iovec piece{&mark, 1};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (::recvmsg(fd, &message, MSG_DONTWAIT | MSG_PEEK | MSG_CMSG_CLOEXEC) != 1) {
    return {};
  }
  const cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  if (rights == nullptr || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) {
    return {};
  }
  int carrier = -1;
  std::memcpy(&carrier, CMSG_DATA(rights), sizeof carrier);
  LaneFd found(carrier);
  ::recv(fd, &mark, 1, MSG_DONTWAIT);
  return found;
}

}  // namespace

LaneFd::LaneFd(int fd) : fd_(fd) {
  if (fd_ >= 0) {
    const std::lock_guard lock(registry().mutex);
    registry().fds.insert(fd_);
  }
}

void LaneFd::reset() {
  if (fd_ >= 0) {
    const std::lock_guard lock(registry().mutex);
    registry().fds.erase(fd_);
    ::close(fd_);
  }
  fd_ = -1;
}

LaneSocket adopt_lane(int fd, const LaneTerms& terms) {
  LaneFd lane(fd);
  int type = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
    throw std::system_error(errno, std::generic_category(), "a lane must be a socket");
  }
  if (type != SOCK_STREAM) {
    throw std::system_error(EPROTOTYPE, std::generic_category(), "a lane must be a stream socket");
  }
  if (::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) != 0 ||
      ::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "fcntl");
  }
  LaneFd carrier = receive_carrier(fd);
  tune(carrier.valid() ? carrier.get() : fd);
  return {std::move(lane), std::move(carrier), terms};
}

bool LaneSocket::hung_up() const {
  std::array<pollfd, 2> both = hang_up_polls();
  constexpr short kGone = POLLRDHUP | POLLHUP | POLLERR | POLLNVAL;
  return ::poll(both.data(), both.size(), 0) != 0 &&
         ((both[0].revents | both[1].revents) & kGone) != 0;
}

bool LaneSocket::carrier_hung_up() const { return carrier_.valid() && hung_up(); }

void LaneSocket::stop_sending() const {
  ::shutdown(own_.get(), SHUT_WR);
  if (carrier_.valid()) {
    ::shutdown(carrier_.get(), SHUT_WR);
  }
}

void LaneSocket::reset_at_end() const {
  const linger reset_at_once{1, 0};
  ::setsockopt(own_.get(), SOL_SOCKET, SO_LINGER, &reset_at_once, sizeof reset_at_once);
  if (carrier_.valid()) {
    // Other descriptors refer to it, too, so closing this one would not disconnect it.
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    [[maybe_unused]] const int cut = ::connect(carrier_.get(), &none, sizeof none);
  }
}

void LaneSocket::reset() {
  own_.reset();
  carrier_.reset();
}

ssize_t send_pieces(int fd, std::span<iovec> pieces, bool more_follows) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  const int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more_follows ? MSG_MORE : 0);
  for (;;) {
    const ssize_t sent = ::sendmsg(fd, &message, flags);
    if (sent >= 0) {
      return sent;
    }
    if (errno != EINTR) {
      return -errno;
    }
  }
}

ssize_t receive_pieces(int fd, std::span<iovec> pieces) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  for (;;) {
    const ssize_t got = ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (got != 0) {
      if (got > 0) {
        return got;
      }
      if (errno != EINTR) {
        return -errno;
      }
      continue;
    }
    return -EPIPE;
  }
}

}  // namespace ldd
