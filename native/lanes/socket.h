// Descriptors of lanes. A forked child must not hold a lane open: its parent's peers would not see
// the parent die. So every descriptor here is known to a registry, and the child replaces each of
// them by /dev/null, which keeps the numbers valid for the objects that it inherits.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/unique_fd.h"

namespace ldd {

class LaneFd {
 public:
  LaneFd() = default;
  // Takes ownership.
  explicit LaneFd(int fd);
  LaneFd(const LaneFd&) = delete;
  LaneFd& operator=(const LaneFd&) = delete;
  LaneFd(LaneFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  LaneFd& operator=(LaneFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~LaneFd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

// The socket of a lane. The bytes of an encrypted lane are carried by another connection: threads
// outside the core move them between that carrier and the Unix socket that the core reads and
// writes. The core never reads or writes the carrier, but looks there whether the peer has hung up,
// and cuts it, so that neither has to wait for those threads.
class LaneSocket {
 public:
  LaneSocket() = default;
  explicit LaneSocket(LaneFd own, LaneFd carrier = {})
      : own_(std::move(own)), carrier_(std::move(carrier)) {}

  [[nodiscard]] int get() const { return own_.get(); }
  // What leads to the peer.
  [[nodiscard]] int outer() const { return carrier_.valid() ? carrier_.get() : own_.get(); }

  // Whether both ends of the connection are on this host, so that they share CLOCK_MONOTONIC.
  [[nodiscard]] bool same_host() const;
  // Whether the other end has closed, or the connection has failed. One system call.
  [[nodiscard]] bool hung_up() const;
  // The same when only threads outside the core would tell; costs nothing without them.
  [[nodiscard]] bool carrier_hung_up() const;

  // Ends what this end sends.
  void stop_sending() const;
  // Has the end of this socket reset the connection, and drop what is under way.
  void reset_at_end() const;
  void reset();

 private:
  LaneFd own_;
  LaneFd carrier_;
};

// Takes a connected stream socket and makes it a lane: non-blocking, closed on exec, no Nagle
// delay, dead connections noticed. A Unix socket may bring its carrier: one byte with the
// descriptor as SCM_RIGHTS, sent before anything else. Throws std::system_error (the socket is
// closed then) when it is none.
LaneSocket adopt_lane(int fd);

// sendmsg/recvmsg without blocking and without SIGPIPE. What went through, or -errno; a receive
// that meets the end of the stream gives -EPIPE; -EAGAIN is back-pressure. EINTR never appears.
[[nodiscard]] ssize_t send_pieces(int fd, std::span<iovec> pieces, bool more_follows);
[[nodiscard]] ssize_t receive_pieces(int fd, std::span<iovec> pieces);

}  // namespace ldd
