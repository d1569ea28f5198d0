// The signal mask of the core's threads.
#pragma once

#include <pthread.h>

#include <csignal>

namespace ldd {

// While it exists, this thread and those that it starts receive no signals except those of their
// own faults; the application's threads handle the process's signals.
class FaultSignalsOnly {
 public:
  FaultSignalsOnly() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) {
      sigdelset(&blocked, signal);
    }
    ::pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  FaultSignalsOnly(const FaultSignalsOnly&) = delete;
  FaultSignalsOnly& operator=(const FaultSignalsOnly&) = delete;
  ~FaultSignalsOnly() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace ldd
