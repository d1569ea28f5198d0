#include "cuda/copy.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

namespace ldd::cuda {

namespace {

constexpr auto kYieldFor = std::chrono::microseconds(50);
constexpr auto kFirstPause = std::chrono::microseconds(10);
constexpr auto kLongestPause = std::chrono::microseconds(200);

Address address_of(const iovec& range) { return reinterpret_cast<Address>(range.iov_base); }

}  // namespace

Outcome outcome_of(Result result) {
  switch (result) {
    case Result::kSuccess:
      return {};
    case Result::kEccUncorrectable:
    case Result::kNvlinkUncorrectable:
    case Result::kIllegalAddress:
    case Result::kContained:
      return Outcome::failure(Code::kLocalFault, EIO);
    default:
      return Outcome::failure(Code::kSystem, EIO);
  }
}

Result submit(const Driver& driver, StreamHandle stream, const iovec* destination,
              const iovec* source, std::size_t count, std::uint64_t& moved) {
  for (std::size_t i = 0; i < count; ++i) {
    if (source[i].iov_len == 0) {
      continue;
    }
    const Result result = driver.memcpy_async(address_of(destination[i]), address_of(source[i]),
                                              source[i].iov_len, stream);
    if (result != Result::kSuccess) {
      return result;
    }
    moved += source[i].iov_len;
  }
  return Result::kSuccess;
}

Result wait(const Driver& driver, StreamHandle stream, const std::function<bool()>& go_on) {
  const auto begin = std::chrono::steady_clock::now();
  auto pause = kFirstPause;
  Result result = Result::kNotReady;
  while ((result = driver.stream_query(stream)) == Result::kNotReady) {
    if (go_on && !go_on()) {
      return result;
    }
    if (std::chrono::steady_clock::now() - begin < kYieldFor) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, kLongestPause);
    }
  }
  return result;
}

Outcome copy_pairs(int device, const iovec* destination, const iovec* source, std::size_t count) {
  const Loaded loaded = present_driver();
  std::string problem;
  Device* const found =
      loaded.driver == nullptr ? nullptr : Device::find(*loaded.driver, device, problem);
  if (found == nullptr) {
    return Outcome::failure(Code::kSystem, ENODEV);
  }
  const Driver& driver = *loaded.driver;
  const Current current(driver, found->context());
  if (current.result() != Result::kSuccess) {
    return outcome_of(current.result());
  }
  const StreamLease lease(*found);
  if (lease.result() != Result::kSuccess) {
    return outcome_of(lease.result());
  }
  std::uint64_t moved = 0;
  const Result submitted = submit(driver, lease.stream(), destination, source, count, moved);
  // Also after a failure: copies queued before it must not land later.
  const Result waited = wait(driver, lease.stream());
  Outcome outcome = outcome_of(submitted != Result::kSuccess ? submitted : waited);
  outcome.moved_bytes = outcome.ok() ? moved : 0;
  return outcome;
}

}  // namespace ldd::cuda
