// Releases the GIL for the length of a scope.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#if __has_include(<bits/cxxabi_forced.h>)
#include <cxxabi.h>
#define LDD_FORCED_UNWIND const abi::__forced_unwind&
#else
#define LDD_FORCED_UNWIND ...  // of libc++, which has no name for it; nothing else is thrown there
#endif

// Like nb::gil_scoped_release, for daemon threads too. Before Python 3.14, a thread that takes the
// GIL of an interpreter that is finalizing is ended by pthread_exit, whose forced unwinding would
// end the process in the first noexcept frame. Here such a thread sleeps until the process has
// ended, as it does since Python 3.14.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (LDD_FORCED_UNWIND) {
      for (;;) ::pause();
    }
  }

 private:
  PyThreadState* state_;
};
