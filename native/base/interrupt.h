// How a caller ends a blocking call early. The caller of the core installs a question for its
// thread, and long waits and long work on that thread ask it regularly. The core does not know what
// the question does.
#pragma once

#include <cstdint>

namespace ldd {

enum class Answer : std::uint8_t {
  kGoOn,
  kEnd,       // the call must end now
  kDoNotAsk,  // go on and do not ask again: nothing interrupts this thread
};

// A blocking call of the thread that constructs it, until it is destroyed. May be nested: the
// question may call the core.
class Interruptible {
 public:
  using Question = Answer (*)();

  explicit Interruptible(Question question);
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  ~Interruptible();

  // Whether the answer was to end it.
  [[nodiscard]] bool ended() const { return ended_; }

  // The following concern the innermost call of the calling thread, if there is one.
  // Whether there is a question to ask.
  static bool active();
  // When to wake up to ask, at the latest; `deadline_ns` when there is no question.
  static std::int64_t wake_ns(std::int64_t deadline_ns);
  // Whether it is time to ask. It is when a signal has arrived.
  static bool due(bool signaled);
  // Asks; true when the call must end. The caller must hold no lock: the question may take long and
  // may call the core.
  static bool ask();

 private:
  Question question_;
  Interruptible* outer_;
  std::int64_t next_ns_;
  bool asks_ = true;
  bool ended_ = false;
};

}  // namespace ldd
