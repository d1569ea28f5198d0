// The sockets of lanes. A forked child must not hold a lane open, or its parent's peers would not
// see the parent die. So a registry lists every descriptor, and the child replaces each of them by
// /dev/null, which keeps the numbers valid for the objects that it inherits.
#pragma once

#include <poll.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/unique_fd.h"
#include "wire/tags.h"

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

// What the two ends of a lane agreed on when they opened it.
struct LaneTerms {
  wire::SipKey send_key{};
  wire::SipKey receive_key{};
  // The other end's CLOCK_MONOTONIC minus the local one; too small by the time that the other end's
  // message took. 0 if both have one clock.
  std::int64_t clock_offset_ns = 0;
};

// The socket of a lane and the tags that authenticate its frames. The bytes of an encrypted lane
// travel on another connection, its carrier: threads outside the core move them between the carrier
// and the Unix socket that the core reads and writes. The core never reads or writes the carrier.
// It only checks there whether the peer has hung up, and disconnects it, so that neither has to
// wait for those threads.
class LaneSocket {
 public:
  LaneSocket() = default;
  LaneSocket(LaneFd own, LaneFd carrier, const LaneTerms& terms)
      : sent(terms.send_key),
        received(terms.receive_key),
        own_(std::move(own)),
        carrier_(std::move(carrier)),
        clock_offset_ns_(terms.clock_offset_ns) {}

  wire::Tags sent;      // of frames to the other end
  wire::Tags received;  // of frames from the other end

  [[nodiscard]] int get() const { return own_.get(); }
  [[nodiscard]] bool valid() const { return own_.valid(); }
  [[nodiscard]] std::int64_t clock_offset_ns() const { return clock_offset_ns_; }
  // What poll(2) needs to see that; it passes over a carrier that is not there.
  [[nodiscard]] std::array<pollfd, 2> hang_up_polls() const {
    return {{{own_.get(), POLLRDHUP, 0}, {carrier_.get(), POLLRDHUP, 0}}};
  }
  // Whether the other end has closed, or the connection has failed. One system call.
  [[nodiscard]] bool hung_up() const;
  // The same for a lane with a carrier, where reads of the socket do not show it; else false, at no
  // cost.
  [[nodiscard]] bool carrier_hung_up() const;

  // Shuts down the sending direction.
  void stop_sending() const;
  // Makes closing the socket reset the connection and discard what is not sent yet.
  void reset_at_end() const;
  void reset();

 private:
  LaneFd own_;
  LaneFd carrier_;
  std::int64_t clock_offset_ns_ = 0;
};

// Takes a connected stream socket and makes it a lane: non-blocking, closed on exec, without
// Nagle's delay, with detection of dead connections. A Unix socket may pass its carrier first: one
// byte with the descriptor as SCM_RIGHTS. Throws std::system_error, and closes the descriptor, if
// it is not a connected stream socket.
LaneSocket adopt_lane(int fd, const LaneTerms& terms);

// sendmsg and recvmsg without blocking and without SIGPIPE. Return the number of bytes, or -errno:
// -EAGAIN when the socket is not ready, -EPIPE when a receive meets the end of the stream, never
// -EINTR.
[[nodiscard]] ssize_t send_pieces(int fd, std::span<iovec> pieces, bool more_follows);
[[nodiscard]] ssize_t receive_pieces(int fd, std::span<iovec> pieces);

}  // namespace ldd
