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

// What the two ends of a lane agreed on when it was opened.
struct LaneTerms {
  wire::SipKey send_key{};
  wire::SipKey receive_key{};
  // The other end's CLOCK_MONOTONIC less the own one: not more than it is, less by as long as
  // the other end's word of it was under way. 0 where both have one clock.
  std::int64_t clock_offset_ns = 0;
};

// The socket of a lane, and what tells the frames of its two ends from those of anybody else. The
// bytes of an encrypted lane are carried by another connection: threads
// outside the core move them between that carrier and the Unix socket that the core reads and
// writes. The core never reads or writes the carrier, but looks there whether the peer has hung up,
// and cuts it, so that neither has to wait for those threads.
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
  wire::Tags received;  // of its frames

  [[nodiscard]] int get() const { return own_.get(); }
  [[nodiscard]] bool valid() const { return own_.valid(); }
  [[nodiscard]] std::int64_t clock_offset_ns() const { return clock_offset_ns_; }
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
  std::int64_t clock_offset_ns_ = 0;
};

// Takes a connected stream socket and makes it a lane: non-blocking, closed on exec, no Nagle
// delay, dead connections noticed. A Unix socket may bring its carrier: one byte with the
// descriptor as SCM_RIGHTS, sent before anything else. Throws std::system_error (the socket is
// closed then) when it is none.
LaneSocket adopt_lane(int fd, const LaneTerms& terms);

// sendmsg/recvmsg without blocking and without SIGPIPE. What went through, or -errno; a receive
// that meets the end of the stream gives -EPIPE; -EAGAIN is back-pressure. EINTR never appears.
[[nodiscard]] ssize_t send_pieces(int fd, std::span<iovec> pieces, bool more_follows);
[[nodiscard]] ssize_t receive_pieces(int fd, std::span<iovec> pieces);

}  // namespace ldd
