// Blocking calls of the core that Python's signal handlers can interrupt, and other threads cancel.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include "base/interrupt.h"
#include "bind/cancellation.h"
#include "bind/released_gil.h"

// Runs the handlers of signals that have arrived, as the interpreter does between two instructions.
// They run on the main thread only. A thread whose calls are canceled gets an exception.
inline ldd::Answer run_signal_handlers() {
  const Cancellation* const cancellation = Cancellation::current();
  if (cancellation != nullptr && cancellation->canceled()) {
    const PyGILState_STATE state = PyGILState_Ensure();
    cancellation->raise();
    PyGILState_Release(state);
    return ldd::Answer::kEnd;
  }
  if (::gettid() != ::getpid()) {
    return cancellation == nullptr ? ldd::Answer::kDoNotAsk : ldd::Answer::kGoOn;
  }
  const PyGILState_STATE state = PyGILState_Ensure();
  const int raised = PyErr_CheckSignals();  // an exception stays set for this thread
  PyGILState_Release(state);
  return raised == 0 ? ldd::Answer::kGoOn : ldd::Answer::kEnd;
}

// Runs `work` without the GIL. Signal handlers run meanwhile; if one raises, the work ends early
// and the exception is raised instead of returning the outcome.
template <class Work>
auto interruptible(Work&& work) {
  const ldd::Interruptible call(run_signal_handlers);
  try {
    auto result = [&] {
      const ReleasedGil release;
      return work();
    }();
    if (call.ended()) {
      throw nanobind::python_error();
    }
    return result;
  } catch (const std::exception&) {
    if (call.ended() && PyErr_Occurred() != nullptr) {
      throw nanobind::python_error();
    }
    throw;
  }
}
