#include "cuda/copy.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ldd::cuda {

namespace {

constexpr auto kYieldFor = std::chrono::microseconds(50);
constexpr auto kFirstPause = std::chrono::microseconds(10);
constexpr auto kLongestPause = std::chrono::microseconds(200);

// What a block of the kernel copies at a time; a multiple of the 16 bytes that a thread copies.
constexpr std::uint64_t kItemBytes = 32 * 1024;
static_assert(kChunkBytes / kItemBytes + kChunkPieces <= kMostItems);

Address address_of(const iovec& range) { return reinterpret_cast<Address>(range.iov_base); }

std::uint64_t bytes_of(const Chunk& chunk) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    sum += chunk.from[i].iov_len;
  }
  return sum;
}

Result copy_one_by_one(const Driver& driver, StreamHandle stream, const Chunk& chunk) {
  for (std::size_t i = 0; i < chunk.count; ++i) {
    if (chunk.from[i].iov_len == 0) {
      continue;
    }
    const Result result = driver.memcpy_async(address_of(chunk.to[i]), address_of(chunk.from[i]),
                                              chunk.from[i].iov_len, stream);
    if (result != Result::kSuccess) {
      return result;
    }
  }
  return Result::kSuccess;
}

Result copy_batch(const Driver& driver, StreamHandle stream, const Chunk& chunk) {
  std::vector<Address> to;
  std::vector<Address> from;
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    if (chunk.from[i].iov_len != 0) {
      to.push_back(address_of(chunk.to[i]));
      from.push_back(address_of(chunk.from[i]));
      sizes.push_back(chunk.from[i].iov_len);
    }
  }
  if (sizes.empty()) {
    return Result::kSuccess;
  }
  CopyAttributes attributes;
  std::size_t first = 0;
  std::size_t failed = 0;
  return driver.memcpy_batch_async(to.data(), from.data(), sizes.data(), sizes.size(), &attributes,
                                   &first, 1, &failed, stream);
}

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

Result poll(const std::function<Result()>& question, const std::function<bool()>& go_on) {
  const auto begin = std::chrono::steady_clock::now();
  auto pause = kFirstPause;
  Result result = Result::kNotReady;
  while ((result = question()) == Result::kNotReady) {
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

StreamCopies::StreamCopies(Device& device, CopyWay way, std::size_t most_in_flight)
    : device_(device),
      driver_(device.driver()),
      way_(way),
      most_in_flight_(most_in_flight),
      lease_(device),
      failure_(lease_.result()) {}

Result StreamCopies::make_room() {
  if (failure_ == Result::kSuccess) {
    const Result result = end_oldest(next_);
    if (result != Result::kSuccess) {
      fail(result);
    }
  }
  return failure_;
}

Result StreamCopies::begin(const Chunk& chunk, std::shared_ptr<const void> held) {
  if (make_room() != Result::kSuccess) {
    return failure_;
  }
  const std::size_t slot = next_;
  next_ = (next_ + 1) % most_in_flight_;
  slots_.at(slot) = {true, std::move(held)};
  Result result = submit(chunk, slot);
  if (result == Result::kSuccess) {
    result = driver_.event_record(lease_.event(slot), lease_.stream());
  }
  if (result != Result::kSuccess) {
    fail(result);
  }
  return failure_;
}

// Waits for the chunk that was in `slot` before.
Result StreamCopies::end_oldest(std::size_t slot) {
  if (!slots_.at(slot).in_flight) {
    return Result::kSuccess;
  }
  const Result result = poll([&] { return driver_.event_query(lease_.event(slot)); });
  if (result == Result::kSuccess) {
    slots_.at(slot) = {};
  }
  return result;
}

// An error of the driver means that the stream is idle as well: its context is dead.
void StreamCopies::fail(Result result) {
  failure_ = result;
  poll([&] { return driver_.stream_query(lease_.stream()); });
  slots_ = {};
}

Result StreamCopies::finish() {
  for (std::size_t i = 0; failure_ == Result::kSuccess && i < most_in_flight_; ++i) {
    const Result result = end_oldest((next_ + i) % most_in_flight_);
    if (result != Result::kSuccess) {
      fail(result);
    }
  }
  return failure_;
}

Result StreamCopies::submit(const Chunk& chunk, std::size_t slot) {
  if (kernel_suits(chunk)) {
    const Kernels* const kernels = device_.kernels();
    CopyItem* const list = kernels == nullptr ? nullptr : lease_.list(slot);
    const std::uint32_t count = list == nullptr ? 0 : fill_list(chunk, list);
    if (count != 0) {
      return kernels->copy(driver_, lease_.stream(), list, count);
    }
  }
  return submit_to_engines(chunk);
}

bool StreamCopies::kernel_suits(const Chunk& chunk) const {
  if (way_ == CopyWay::kEngine || chunk.to_side == Side::kElsewhere ||
      chunk.from_side == Side::kElsewhere || chunk.count == 0 || chunk.count > kChunkPieces) {
    return false;
  }
  const std::uint64_t bytes = bytes_of(chunk);
  return bytes <= kChunkBytes &&
         (way_ == CopyWay::kKernel || bytes / chunk.count < kKernelBelowBytes);
}

std::uint32_t StreamCopies::fill_list(const Chunk& chunk, CopyItem* list) const {
  AllocationCheck to_check(driver_);
  AllocationCheck from_check(driver_);
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < chunk.count; ++i) {
    const Address to = address_of(chunk.to[i]);
    const Address from = address_of(chunk.from[i]);
    const std::size_t bytes = chunk.from[i].iov_len;
    if ((chunk.to_side != Side::kPinned && !to_check.contains(to, bytes)) ||
        (chunk.from_side != Side::kPinned && !from_check.contains(from, bytes))) {
      return 0;
    }
    for (std::uint64_t at = 0; at < bytes; at += kItemBytes) {
      list[count++] = {to + at, from + at, std::min(kItemBytes, bytes - at)};
    }
  }
  return count;
}

// A driver may have no batches for some kinds of memory: then the copies are submitted one by one.
// Those of the batch that it has accepted are made twice, with the same bytes.
Result StreamCopies::submit_to_engines(const Chunk& chunk) {
  if (driver_.memcpy_batch_async != nullptr && chunk.count > 1) {
    const Result result = copy_batch(driver_, lease_.stream(), chunk);
    if (result != Result::kNotSupported && result != Result::kInvalidValue) {
      return result;
    }
  }
  return copy_one_by_one(driver_, lease_.stream(), chunk);
}

Outcome copy_pairs(int device, const iovec* destination, const iovec* source, std::size_t count,
                   Side to_side, Side from_side) {
  const Loaded loaded = present_driver();
  std::string problem;
  Device* const found =
      loaded.driver == nullptr ? nullptr : Device::find(*loaded.driver, device, problem);
  if (found == nullptr) {
    return Outcome::failure(Code::kSystem, ENODEV);
  }
  const Current current(*loaded.driver, found->context());
  if (current.result() != Result::kSuccess) {
    return outcome_of(current.result());
  }
  StreamCopies copies(*found, CopyWay::kAuto);
  const Chunk chunk{destination, source, count, to_side, from_side};
  copies.begin(chunk);
  Outcome outcome = outcome_of(copies.finish());
  outcome.moved_bytes = outcome.ok() ? bytes_of(chunk) : 0;
  return outcome;
}

}  // namespace ldd::cuda
