#include "copy/device.h"

#include <cerrno>
#include <memory>
#include <mutex>
#include <utility>

namespace ldd {

namespace {

struct Known {
  DeviceDriver driver;
  std::vector<DeviceQueue> queues;
};

// Never destroyed: threads may outlive static destructors.
struct Shared {
  std::mutex mutex;
  std::shared_ptr<const Known> known;
};

Shared& shared() {
  static Shared* const one = new Shared;  // NOLINT(cppcoreguidelines-owning-memory)
  return *one;
}

std::uint64_t address_of(const iovec& range) {
  return reinterpret_cast<std::uint64_t>(range.iov_base);
}

}  // namespace

void set_device_driver(const DeviceDriver& driver, std::vector<DeviceQueue> queues) {
  auto known = std::make_shared<const Known>(Known{driver, std::move(queues)});
  const std::lock_guard lock(shared().mutex);
  shared().known = std::move(known);
}

Outcome device_copy(int device, const iovec* destination, const iovec* source, std::size_t count) {
  const std::shared_ptr<const Known> known = [] {
    const std::lock_guard lock(shared().mutex);
    return shared().known;
  }();
  const auto ordinal = static_cast<std::size_t>(device);
  if (known == nullptr || device < 0 || ordinal >= known->queues.size() ||
      known->queues[ordinal].context == nullptr) {
    return Outcome::failure(Code::kSystem, ENODEV);
  }
  const DeviceDriver& driver = known->driver;
  const DeviceQueue& queue = known->queues[ordinal];
  if (driver.set_context(queue.context) != 0) {
    return Outcome::failure(Code::kSystem, EIO);
  }
  Outcome outcome;
  for (std::size_t i = 0; i < count && outcome.ok(); ++i) {
    if (driver.copy(address_of(destination[i]), address_of(source[i]), source[i].iov_len,
                    queue.stream) != 0) {
      outcome = Outcome::failure(Code::kSystem, EIO);
    } else {
      outcome.moved_bytes += source[i].iov_len;
    }
  }
  // Also after a failure: copies queued before it must not land later.
  if (driver.synchronize(queue.stream) != 0 && outcome.ok()) {
    outcome = Outcome::failure(Code::kSystem, EIO);
  }
  return outcome;
}

}  // namespace ldd
