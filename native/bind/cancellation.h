// How another thread ends the blocking calls of a thread. Signal handlers do so on the main thread
// only (bind/interruptible.h).
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <utility>

class Cancellation {
 public:
  // `raised` is the type of the exception that ends a call.
  explicit Cancellation(nanobind::object raised) : raised_(std::move(raised)) {}

  // Ends the call that runs under it, and all later ones. On any thread.
  void cancel() { canceled_.store(true); }
  [[nodiscard]] bool canceled() const { return canceled_.load(std::memory_order_relaxed); }

  // The calls of the calling thread run under it between the two, which do not nest.
  void enter() { current() = this; }
  static void exit() { current() = nullptr; }

  // That of the calling thread, or null.
  static Cancellation*& current() {
    thread_local Cancellation* current = nullptr;
    return current;
  }
  // Sets the exception of the calling thread, which holds the GIL.
  void raise() const { PyErr_SetNone(raised_.ptr()); }

 private:
  nanobind::object raised_;
  std::atomic<bool> canceled_{false};
};
