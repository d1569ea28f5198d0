// The core's handlers of SIGSEGV and SIGBUS, which pass other faults on to the handlers installed
// before them.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdint>

namespace ldd {

// Where a fault of this thread is caught. Lives on the stack of the function that catches it.
struct FaultCatcher {
  sigjmp_buf landing;
  sigset_t mask;               // the thread's signal mask at the fault, to be restored afterwards
  std::uintptr_t address = 0;  // 0 when the kernel does not know it
  bool is_write = false;       // meaningful only where kFaultsTellWrites
};

#if defined(__x86_64__)
inline constexpr bool kFaultsTellWrites = true;
#else
inline constexpr bool kFaultsTellWrites = false;
#endif

// Installs the handlers on top of the present ones, unless they are installed already.
void install_fault_handlers();

// Faults of this thread jump to `catcher` (once) until this is called with null.
void catch_faults(FaultCatcher* catcher);

}  // namespace ldd
