// The signal mask of threads that are not the application's.
#pragma once

#include <pthread.h>

#include <csignal>

namespace ldd {

// While it lives, this thread, and those that it starts, get no signals but those of own faults:
// signals meant for the process are for the application's threads.
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
