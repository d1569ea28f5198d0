#include "host/gpu_exports.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <utility>

#include "cuda/sharing.h"

namespace ldd {

namespace {

struct Made {
  Export exported;
  UniqueFd descriptor;
};

std::optional<Made> make_export(std::uint64_t address, std::string& problem) {
  const cuda::Loaded loaded = cuda::present_driver();
  problem = loaded.problem;
  auto made = loaded.driver == nullptr ? std::nullopt
                                       : cuda::export_allocation(*loaded.driver, address, problem);
  if (!made) {
    return std::nullopt;
  }
  Made done;
  done.exported = {{made->begin, made->begin + made->size},
                   made->gpu.bytes,
                   static_cast<std::uint64_t>(made->sharing),
                   made->handle.bytes};
  if (made->sharing == cuda::Sharing::kDescriptor) {
    const int number = made->descriptor.get();
    std::memcpy(done.exported.handle.data(), &number, sizeof number);
    done.descriptor = std::move(made->descriptor);
  }
  return done;
}

}  // namespace

GpuExports::Pieces::iterator GpuExports::find(std::uint64_t address) {
  auto after = known_.upper_bound(address);
  if (after == known_.begin()) {
    return known_.end();
  }
  --after;
  return address < after->second.end ? after : known_.end();
}

bool GpuExports::registered(std::uint64_t begin, std::uint64_t end) const {
  return std::any_of(registered_.begin(), registered_.upper_bound(end - 1),
                     [begin](const auto& each) { return begin < each.first + each.second; });
}

std::string GpuExports::publish(std::uint64_t address, std::uint64_t size) {
  const std::uint64_t end = address + size;
  for (std::uint64_t at = address; at < end;) {
    auto found = find(at);
    if (found == known_.end()) {
      std::string problem;
      std::optional<Made> made = make_export(at, problem);
      if (!made) {
        return problem;
      }
      const Range range = made->exported.range;
      if (at < range.begin || at >= range.end) {
        return "the driver names another allocation for an address";
      }
      try {
        const Ref row = node_->published().open_export(made->exported);
        found =
            known_.emplace(range.begin, Known{range.end, row, std::move(made->descriptor)}).first;
      } catch (const std::length_error& full) {
        return full.what();
      }
    }
    at = found->second.end;
  }
  return "";
}

Range GpuExports::withdraw(std::uint64_t address, std::uint64_t size, bool all) {
  Range ended{address, address + size};
  for (auto each = known_.begin(); each != known_.end() && each->first < address + size;) {
    auto& [begin, known] = *each;
    if (known.end <= address || (!all && registered(begin, known.end))) {
      ++each;
      continue;
    }
    ended = {std::min(ended.begin, begin), std::max(ended.end, known.end)};
    node_->published().close_export(known.row);
    each = known_.erase(each);
  }
  return ended;
}

std::string GpuExports::add(std::uint64_t address, std::uint64_t size) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  std::string problem = publish(address, size);
  if (problem.empty()) {
    registered_.emplace(address, size);
  } else {
    withdraw(address, size, false);
  }
  return problem;
}

void GpuExports::remove(std::uint64_t address, std::uint64_t size) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  const auto [first, last] = registered_.equal_range(address);
  const auto found =
      std::find_if(first, last, [size](const auto& each) { return each.second == size; });
  if (found != last) {
    registered_.erase(found);
    withdraw(address, size, false);
  }
}

void GpuExports::renew(std::uint64_t address, std::uint64_t size) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  const Range ended = withdraw(address, size, true);
  for (const auto& [begin, length] : registered_) {
    if (begin < ended.end && ended.begin < begin + length) {
      [[maybe_unused]] const std::string problem = publish(begin, length);
    }
  }
}

}  // namespace ldd
