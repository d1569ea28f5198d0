#include "copy/gather.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>

#include "copy/fault_handler.h"

namespace ldd {

namespace {

constexpr std::size_t kLineBytes = 64;
// The pieces lie apart, so the processor does not fetch the next ones by itself.
constexpr std::size_t kAhead = 8;
constexpr std::size_t kMostFetched = 1024;  // of one piece; the rest follows by itself

void fetch(const iovec& piece) {
  const auto* const begin = static_cast<const std::byte*>(piece.iov_base);
  for (std::size_t at = 0; at < std::min(piece.iov_len, kMostFetched); at += kLineBytes) {
    __builtin_prefetch(begin + at);
  }
}

}  // namespace

CopyFault guarded_gather(std::byte* to, std::span<const iovec> pieces) {
  FaultCatcher catcher;
  volatile std::size_t piece = 0;
  if (sigsetjmp(catcher.landing, 0) != 0) {
    ::pthread_sigmask(SIG_SETMASK, &catcher.mask, nullptr);
    return {FaultSide::kSource, piece};
  }
  catch_faults(&catcher);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::byte* at = to;  // `to` must not change after sigsetjmp
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    piece = i;
    if (i + kAhead < pieces.size()) {
      fetch(pieces[i + kAhead]);
    }
    std::memcpy(at, pieces[i].iov_base, pieces[i].iov_len);
    at += pieces[i].iov_len;
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
  catch_faults(nullptr);
  return {};
}

}  // namespace ldd
