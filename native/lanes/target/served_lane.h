// The target's side of one lane: a state machine on an io thread. It reads a request, checks it
// against the registered memory, and moves the bytes directly between the socket and that memory,
// holding the entries for one system call at a time. For a request that may take long, the io
// thread lends the lane to a job thread. That thread replies and, after a short push, keeps the
// lane a moment for the next one. Only the thread that has the lane accesses its state.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/chunks.h"
#include "lanes/socket.h"
#include "lanes/target/gather_buffer.h"
#include "lanes/target/io_threads.h"
#include "lanes/target/rights.h"
#include "lanes/target/served_links.h"
#include "wire/frames.h"

namespace ldd {

class ServedLane final : public Served,
                         private BatchGuard,
                         public std::enable_shared_from_this<ServedLane> {
 public:
  ServedLane(std::shared_ptr<ServedLinks> links, std::uint64_t link_id, LaneSocket socket,
             IoThread& thread);

  // Start serving, and stop: the lane leaves its link once none of its work accesses memory.
  // Callable from any thread; they take effect on the io thread.
  void start();
  void shut();

  [[nodiscard]] int fd() const override { return socket_.get(); }
  void on_events(std::uint32_t events) noexcept override;
  // Whether a job thread works for the lane. Callable from any thread.
  [[nodiscard]] bool has_job() const { return job_.load(std::memory_order_acquire) != Job::kNone; }

 private:
  // kPush and kChecksum are for job threads, kProbe and kTouching for the io thread.
  enum class State {
    kPrefix,
    kWords,
    kStream,
    kPayload,
    kPush,
    kChecksum,
    kProbe,
    kTouching,
    kReply,
    kClosed
  };
  enum class Progress { kGoOn, kWait, kClose, kLent };
  enum class Job : std::uint8_t {
    kNone,
    kHasLane,     // until take_back()
    kBesideLane,  // does not access the lane's state, and may outlive the lane
  };

  // served_lane.cc: requests and replies
  Progress step();
  Progress read_prefix();
  Progress read_words();
  Progress send_reply();
  Progress begin();
  // Sends `answer`, unless empty, as one chunk before the outcome.
  Progress reply(const Outcome& outcome, std::span<const std::byte> answer = {});
  Progress reply_version();
  [[nodiscard]] wire::OutcomeFrame outcome_frame(const Outcome& outcome,
                                                 std::span<const std::byte> answer = {});
  Progress send_out(State then);  // sends out_
  Progress await_request();
  void await_events();
  [[nodiscard]] bool goes_on_without_input() const;
  void want(std::uint32_t events);
  void close();
  void leave();
  void wake();

  // serve_on_job_thread.cc
  [[nodiscard]] bool on_job_thread() const { return job_ == Job::kHasLane; }
  Progress lend();
  void serve_on_job_thread() noexcept;
  [[nodiscard]] bool stays() const;
  void take_back(Progress progress);
  Progress protocol_error();  // the initiator broke the protocol
  Progress forged();          // the frame was not sent by the initiator
  Progress reply_log();

  // serve_read_write.cc: READ and WRITE
  Progress begin_read();
  [[nodiscard]] Place place();
  Progress await_copy();
  Progress stream();
  Progress begin_write();
  Progress payload();
  Progress fail_write();
  Progress end_write();
  Outcome take(std::vector<Use>& uses) override;

  // serve_checksum.cc
  Progress begin_checksum();
  Progress checksum();
  [[nodiscard]] Outcome run_checksum(std::span<std::uint32_t> sums);
  [[nodiscard]] Outcome run_checksum_on_gpu(std::span<std::uint32_t> sums);
  Progress begin_probe();
  Progress probe();
  void end_probe(const Outcome& outcome);

  // serve_gather.cc
  Progress begin_gather();
  [[nodiscard]] Outcome run_gather(Cursor cursor, std::span<std::byte> room);

  // serve_push.cc
  Progress begin_push();
  Progress push();
  [[nodiscard]] Outcome run_push();
  [[nodiscard]] Outcome find_sources(HostPeer& host, std::vector<std::uint64_t>& sources);

  [[nodiscard]] Outcome check_rights(Access access);
  [[nodiscard]] std::span<const std::uint64_t> column(std::size_t which) const;
  [[nodiscard]] std::uint64_t requested_bytes() const;  // saturates

  std::shared_ptr<ServedLinks> links_;
  std::uint64_t link_id_;
  std::shared_ptr<LinkActivity> activity_;
  LaneSocket socket_;
  IoThread& thread_;
  State state_ = State::kPrefix;
  std::uint32_t interest_ = 0;
  std::atomic<bool> cancelled_{false};  // read by a running job

  wire::RequestFrame prefix_{};
  std::size_t prefix_filled_ = 0;
  std::optional<wire::Header> header_;
  wire::Request request_;
  std::int64_t deadline_ns_ = 0;
  std::vector<std::uint64_t> words_;
  std::size_t words_filled_ = 0;  // bytes

  Rights rights_;
  ChunkSender sender_;
  ChunkReceiver receiver_;
  GatherBuffer gathered_;
  bool answered_ = false;                 // a write's outcome was sent before its payload ended
  std::atomic<bool> awaits_copy_{false};  // of a GPU's memory; wake() is called when it has ended
  std::unique_ptr<Staging> staging_;      // made at first use

  std::atomic<Job> job_{Job::kNone};  // changed on the io thread
  std::int64_t stay_until_ns_ = 0;    // of a job thread that has the lane

  std::vector<std::byte> out_;
  std::size_t out_sent_ = 0;
  State after_reply_ = State::kPrefix;
};

}  // namespace ldd
