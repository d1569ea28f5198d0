#include "copy/fault_handler.h"

#include <pthread.h>
#include <ucontext.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <mutex>
#include <new>

#include "base/clock.h"

namespace ldd {

namespace {

// Initial-exec, so that an access in the handler never makes the loader allocate the variable.
#define LDD_SIGNAL_SAFE_TLS thread_local __attribute__((tls_model("initial-exec")))

LDD_SIGNAL_SAFE_TLS FaultCatcher* volatile catcher_now = nullptr;
// To how many earlier handlers the current signal has been passed on already.
LDD_SIGNAL_SAFE_TLS volatile int passing_depth = 0;
// The last fault passed on, and how often in a row it recurred at once.
LDD_SIGNAL_SAFE_TLS volatile std::uintptr_t passed_address = 0;
LDD_SIGNAL_SAFE_TLS volatile std::int64_t passed_ns = 0;
LDD_SIGNAL_SAFE_TLS volatile int passed_times = 0;

constexpr int kMostReturns = 10'000;
constexpr std::int64_t kAtOnceNs = 1'000'000;
constexpr std::size_t kMostHandlers = 8;

// The handlers found when installing, oldest first. It only grows. The signal handler may read it
// while another thread appends, so the count is published after the slot.
struct Chain {
  int signal;
  std::array<struct sigaction, kMostHandlers> handlers{};
  std::atomic<std::size_t> count{0};
};
std::array<Chain, 2> chains{Chain{SIGSEGV}, Chain{SIGBUS}};
std::mutex install_mutex;

// A thread that held the lock when the parent forked does not exist in the child.
void renew_install_mutex() { new (&install_mutex) std::mutex; }

[[maybe_unused]] const int kRegistered = ::pthread_atfork(nullptr, nullptr, renew_install_mutex);

bool is_function(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 ||
         (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
}

bool same_handler(const struct sigaction& one, const struct sigaction& other) {
  return one.sa_sigaction == other.sa_sigaction &&
         (one.sa_flags & SA_SIGINFO) == (other.sa_flags & SA_SIGINFO);
}

// Restores the kernel's default action: it happens at once for a raised signal, else when the
// faulting instruction runs again after this handler has returned.
void die_of(int signal, bool raised) {
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  ::sigaction(signal, &action, nullptr);
  if (raised) {
    ::raise(signal);
  }
}

void pass_on(int signal, siginfo_t* info, void* context) {
  const bool raised = info->si_code <= 0;
  const Chain& chain = signal == SIGSEGV ? chains[0] : chains[1];
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  // A handler that neither repairs the fault nor ends the process would recur here for ever. Others
  // (a garbage collector's, for example) repair the same address repeatedly, but not that often.
  if (!raised) {
    const std::int64_t now = now_ns();
    const bool again = address == passed_address && now - passed_ns < kAtOnceNs;
    passed_times = again ? passed_times + 1 : 0;
    passed_address = address;
    passed_ns = now;
  }
  const std::size_t count = chain.count.load(std::memory_order_acquire);
  const int depth_before = passing_depth;
  const std::size_t depth = raised ? static_cast<std::size_t>(depth_before) : 0;
  if (depth >= count || passed_times > kMostReturns) {
    die_of(signal, raised);
    return;
  }
  const struct sigaction& next = chain.handlers[count - 1 - depth];
  if (!is_function(next)) {
    if (next.sa_handler == SIG_IGN && raised) {
      return;
    }
    die_of(signal, raised);
    return;
  }
  // Handlers such as Python's faulthandler report the fault, reinstall this handler, and raise the
  // signal again; the depth passes that second signal to the handler before them.
  passing_depth = static_cast<int>(depth) + 1;
  if ((next.sa_flags & SA_SIGINFO) != 0) {
    next.sa_sigaction(signal, info, context);
  } else {
    next.sa_handler(signal);
  }
  passing_depth = depth_before;
}

bool writes([[maybe_unused]] const void* context) {
#if defined(__x86_64__)
  constexpr greg_t kWriteBit = 2;  // of the page-fault error code
  return (static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWriteBit) != 0;
#else
  return false;
#endif
}

void on_fault(int signal, siginfo_t* info, void* context) {
  FaultCatcher* catcher = catcher_now;
  const bool from_kernel = info->si_code > 0;
  // A raised signal counts too: a handler installed on top of this one after the copy began may
  // have reported the fault and passed it on that way.
  const bool raised_here = info->si_code == SI_TKILL;
  if (catcher == nullptr || !(from_kernel || raised_here)) {
    pass_on(signal, info, context);
    return;
  }
  catcher_now = nullptr;
  catcher->address = from_kernel ? reinterpret_cast<std::uintptr_t>(info->si_addr) : 0;
  catcher->is_write = writes(context);
  catcher->mask = static_cast<const ucontext_t*>(context)->uc_sigmask;
  siglongjmp(catcher->landing, 1);
}

struct sigaction own_action() {
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  // Not deferred: earlier handlers may raise the signal again and expect it to be handled at once.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  ::sigemptyset(&action.sa_mask);
  return action;
}

bool installed(int signal) {
  struct sigaction now{};
  ::sigaction(signal, nullptr, &now);
  return now.sa_sigaction == on_fault && (now.sa_flags & SA_SIGINFO) != 0;
}

void install(Chain& chain) {
  struct sigaction now{};
  ::sigaction(chain.signal, nullptr, &now);
  if (now.sa_sigaction == on_fault) {
    return;
  }
  const std::size_t count = chain.count.load(std::memory_order_relaxed);
  const bool known = count != 0 && same_handler(now, chain.handlers[count - 1]);
  if (!known && count < kMostHandlers) {
    chain.handlers[count] = now;
    chain.count.store(count + 1, std::memory_order_release);
  }
  const struct sigaction action = own_action();
  ::sigaction(chain.signal, &action, nullptr);
}

}  // namespace

void install_fault_handlers() {
  if (installed(SIGSEGV) && installed(SIGBUS)) {
    return;
  }
  const std::lock_guard lock(install_mutex);
  for (Chain& chain : chains) {
    install(chain);
  }
}

void catch_faults(FaultCatcher* catcher) { catcher_now = catcher; }

}  // namespace ldd
