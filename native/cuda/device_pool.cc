#include "cuda/device_pool.h"

#include <algorithm>
#include <utility>

#include "cuda/copy.h"

namespace ldd::cuda {

namespace {

constexpr std::size_t kLeastPiece = std::size_t{32} << 20;

std::size_t rounded(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

// Why a GPU can have no pool, or "".
std::string check_device(const Device& device) {
  for (const auto& [fact, what] : {std::pair{DeviceFact::kVirtualMemory, "virtual memory"},
                                   std::pair{DeviceFact::kDescriptors, "descriptors of it"}}) {
    int has = 0;
    const Result result = device.driver().device_get_attribute(&has, fact, device.ordinal());
    if (result != Result::kSuccess || has == 0) {
      return std::string("GPU ") + std::to_string(device.ordinal()) + " or its driver has no " +
             what + ", of which pools consist";
    }
  }
  return "";
}

// The parts of [begin, end) that are in none of the ranges.
std::vector<Lost> kept_parts(Address begin, Address end, std::vector<Lost> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Lost& a, const Lost& b) { return a.begin < b.begin; });
  std::vector<Lost> kept;
  for (const Lost& lost : ranges) {
    if (lost.begin > begin && begin < end) {
      kept.push_back({begin, std::min(lost.begin, end) - begin});
    }
    begin = std::max(begin, lost.begin + lost.size);
  }
  if (begin < end) {
    kept.push_back({begin, end - begin});
  }
  return kept;
}

iovec at(Address address, std::size_t size) { return {reinterpret_cast<void*>(address), size}; }

}  // namespace

std::shared_ptr<DevicePool> DevicePool::make(int ordinal, std::size_t size, Result& result,
                                             std::string& problem) {
  const Loaded loaded = present_driver();
  problem = loaded.problem;
  result = Result::kInvalidValue;
  Device* const device =
      loaded.driver == nullptr ? nullptr : Device::find(*loaded.driver, ordinal, problem);
  if (device == nullptr) {
    return nullptr;
  }
  problem = check_device(*device);
  if (!problem.empty()) {
    return nullptr;
  }
  const Driver& driver = *loaded.driver;
  const Current current(driver, device->context());
  const auto failed = [&](const char* function) {
    problem = describe(driver, function, result);
    return nullptr;
  };
  std::size_t unit = 0;
  result = granularity(*device, unit);
  if (result != Result::kSuccess) {
    return failed("cuMemGetAllocationGranularity");
  }
  const std::size_t whole = rounded(size, unit);
  std::unique_ptr<Reservation> addresses;
  result = Reservation::make(*device, whole, addresses);
  if (result != Result::kSuccess) {
    return failed("cuMemAddressReserve");
  }
  const std::size_t piece = rounded(std::max(kLeastPiece, whole / kMostPieces + 1), unit);
  auto pool = std::make_shared<DevicePool>(std::move(addresses), piece);
  for (std::size_t offset = 0; offset < whole; offset += piece) {
    Piece made{offset, std::min(piece, whole - offset), {}};
    result = Physical::make(*device, made.size, made.memory);
    if (result != Result::kSuccess) {
      return failed("cuMemCreate");
    }
    result = pool->addresses_->map(offset, made.size, made.memory, kReadWrite);
    if (result != Result::kSuccess) {
      return failed("cuMemMap or cuMemSetAccess");
    }
    pool->pieces_.push_back(std::move(made));
  }
  return pool;
}

Result DevicePool::renew(const Piece& old, const std::vector<Lost>& ranges, Piece& made,
                         std::string& problem) {
  Device& device = addresses_->device();
  std::unique_ptr<Reservation> elsewhere;  // until it takes the place of the old memory
  made.offset = old.offset;
  made.size = old.size;
  Result result = Physical::make(device, old.size, made.memory);
  if (result != Result::kSuccess) {
    problem = describe(device.driver(), "cuMemCreate", result);
    return result;
  }
  result = Reservation::make(device, old.size, elsewhere);
  result =
      result == Result::kSuccess ? elsewhere->map(0, old.size, made.memory, kReadWrite) : result;
  if (result != Result::kSuccess) {
    problem = describe(device.driver(), "cuMemMap", result);
    return result;
  }
  std::vector<iovec> to;
  std::vector<iovec> from;
  const Address begin = address() + old.offset;
  for (const Lost& kept : kept_parts(begin, begin + old.size, ranges)) {
    from.push_back(at(kept.begin, kept.size));
    to.push_back(at(elsewhere->begin() + (kept.begin - begin), kept.size));
  }
  const Outcome copied = copy_pairs(device.ordinal(), to.data(), from.data(), to.size());
  problem = copied.ok() ? "" : "the bytes that are kept could not be copied to new memory";
  return copied.ok() ? Result::kSuccess : Result::kInvalidValue;
}

void DevicePool::close() {
  addresses_.reset();
  pieces_.clear();
}

Result DevicePool::exchange(Piece& piece, Piece& made) {
  Result result = addresses_->unmap(piece.offset);
  if (result != Result::kSuccess) {
    return result;
  }
  result = addresses_->map(piece.offset, piece.size, made.memory, kReadWrite);
  if (result == Result::kSuccess) {
    std::swap(piece.memory, made.memory);
    return result;
  }
  [[maybe_unused]] const Result back =
      addresses_->map(piece.offset, piece.size, piece.memory, kReadWrite);
  return result;
}

Result DevicePool::replace(const std::vector<Lost>& ranges, std::string& problem) {
  if (addresses_ == nullptr) {
    problem = "the pool is closed";
    return Result::kInvalidValue;
  }
  const Device& device = addresses_->device();
  const Current current(device.driver(), device.context());
  std::vector<std::pair<std::size_t, Piece>> made;
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const Address begin = address() + pieces_[i].offset;
    const bool touched = std::any_of(ranges.begin(), ranges.end(), [&](const Lost& lost) {
      return lost.begin < begin + pieces_[i].size && begin < lost.begin + lost.size;
    });
    if (touched) {
      made.emplace_back(i, Piece{});
      const Result result = renew(pieces_[i], ranges, made.back().second, problem);
      if (result != Result::kSuccess) {
        return result;
      }
    }
  }
  for (auto done = made.begin(); done != made.end(); ++done) {
    const Result result = exchange(pieces_[done->first], done->second);
    if (result != Result::kSuccess) {
      while (done != made.begin()) {  // what was exchanged gets its old memory back
        --done;
        [[maybe_unused]] const Result back = exchange(pieces_[done->first], done->second);
      }
      problem = describe(device.driver(), "cuMemMap", result);
      return result;
    }
  }
  return Result::kSuccess;
}

}  // namespace ldd::cuda
