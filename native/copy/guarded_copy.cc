#include "copy/guarded_copy.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>

#include "copy/crc32c.h"
#include "copy/fault_handler.h"
#include "copy/streaming.h"
#include "copy/summed_copy.h"

namespace ldd {

namespace {

std::uintptr_t value(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

bool inside(std::uintptr_t address, const iovec& range) {
  return address - value(range.iov_base) < range.iov_len;
}

FaultSide side_of(const FaultCatcher& catcher, const iovec& destination, const iovec& source) {
  const bool in_destination = inside(catcher.address, destination);
  const bool in_source = inside(catcher.address, source);
  if (in_destination != in_source) {
    return in_destination ? FaultSide::kDestination : FaultSide::kSource;
  }
  if (kFaultsTellWrites && catcher.address != 0) {
    return catcher.is_write ? FaultSide::kDestination : FaultSide::kSource;
  }
  // Without an address, the fault was at one that no user mapping can have: the larger one.
  return value(destination.iov_base) > value(source.iov_base) ? FaultSide::kDestination
                                                              : FaultSide::kSource;
}

// Runs a body that only reads and has nothing to destroy. True if there was no fault.
template <typename Body>
bool survives(const Body& body) {
  FaultCatcher catcher;
  if (sigsetjmp(catcher.landing, 0) != 0) {
    ::pthread_sigmask(SIG_SETMASK, &catcher.mask, nullptr);
    return false;
  }
  catch_faults(&catcher);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  body();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  catch_faults(nullptr);
  return true;
}

}  // namespace

void prepare_guarded_copies() { install_fault_handlers(); }

CopyFault guarded_copy(const iovec* destination, const iovec* source, std::size_t count,
                       CopyKind kind) {
  FaultCatcher catcher;
  volatile std::size_t piece = 0;
  if (sigsetjmp(catcher.landing, 0) != 0) {
    // The jump does not restore it: saving the mask before each copy would cost a system call.
    ::pthread_sigmask(SIG_SETMASK, &catcher.mask, nullptr);
    finish_streaming();  // stores before the fault are complete now, not later
    const std::size_t at = piece;
    return {side_of(catcher, destination[at], source[at]), at};
  }
  catch_faults(&catcher);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  for (std::size_t i = 0; i < count; ++i) {
    piece = i;
    if (source[i].iov_len == 0) {
      continue;
    }
    if (kind == CopyKind::kStreaming) {
      streaming_copy(destination[i].iov_base, source[i].iov_base, source[i].iov_len);
    } else {
      std::memcpy(destination[i].iov_base, source[i].iov_base, source[i].iov_len);
    }
  }
  if (kind == CopyKind::kStreaming) {
    finish_streaming();
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
  catch_faults(nullptr);
  return {};
}

CopyFault guarded_copy_and_checksum(const iovec& destination, const iovec& source, CopyKind kind,
                                    std::uint32_t& sum) {
  FaultCatcher catcher;
  if (sigsetjmp(catcher.landing, 0) != 0) {
    ::pthread_sigmask(SIG_SETMASK, &catcher.mask, nullptr);
    finish_streaming();
    return {side_of(catcher, destination, source), 0};
  }
  catch_faults(&catcher);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const auto copy = kind == CopyKind::kStreaming ? &stream_and_checksum : &copy_and_checksum;
  const std::uint32_t after =
      copy(static_cast<std::byte*>(destination.iov_base),
           static_cast<const std::byte*>(source.iov_base), source.iov_len, sum);
  if (kind == CopyKind::kStreaming) {
    finish_streaming();
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
  catch_faults(nullptr);
  sum = after;
  return {};
}

bool guarded_checksum(const void* data, std::size_t size, std::uint32_t& sum) {
  return survives([&] { sum = crc32c({static_cast<const std::byte*>(data), size}, sum); });
}

bool guarded_probe(const void* data, std::size_t size) {
  static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return survives([&] {
    const auto* const bytes = static_cast<const volatile std::byte*>(data);
    for (std::size_t at = 0; at < size; at += page - (value(data) + at) % page) {
      static_cast<void>(bytes[at]);
    }
  });
}

}  // namespace ldd
