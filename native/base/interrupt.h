// How a caller ends a blocking call early. The caller of the core installs a question for its
// thread; what waits or works for long on that thread asks it now and then. The core does not know
// what is behind it.
#pragma once

#include <cstdint>

namespace ldd {

enum class Answer : std::uint8_t {
  kGoOn,
  kEnd,       // the call has to end now
  kDoNotAsk,  // nor ask again: nothing interrupts this thread
};

// A blocking call on the thread that makes it, from construction to destruction. May be nested: the
// question may call the core again.
class Interruptible {
 public:
  using Question = Answer (*)();

  explicit Interruptible(Question question);
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  ~Interruptible();

  // Whether the answer was to end it.
  [[nodiscard]] bool ended() const { return ended_; }

  // For the call that the calling thread is in, if it is in one:
  // Whether it may be asked.
  static bool here();
  // When to wake up at the latest to ask; `deadline_ns` when there is no question.
  static std::int64_t wake_ns(std::int64_t deadline_ns);
  // Whether it is time to ask; a signal that has arrived makes it so.
  static bool due(bool signaled);
  // Asks; true when the call has to end. Hold no lock: the answer may take long, and use the core.
  static bool ask();

 private:
  Question question_;
  Interruptible* outer_;
  std::int64_t next_ns_;
  bool asks_ = true;
  bool ended_ = false;
};

}  // namespace ldd
