#include "cuda/device.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

namespace ldd::cuda {

namespace {

// Never destroyed: threads may outlive static destructors.
struct Devices {
  std::mutex mutex;
  std::map<int, std::unique_ptr<Device>> known;
};

Devices& devices() {
  static Devices* const one = new Devices;  // NOLINT(cppcoreguidelines-owning-memory)
  return *one;
}

std::optional<int> fact(const Driver& driver, PointerFact which, Address address) {
  int value = 0;
  const Result result = driver.pointer_get_attribute(&value, which, address);
  return result == Result::kSuccess ? std::optional(value) : std::nullopt;
}

// Finds the allocation, or the mapping of virtual memory, that has an address.
bool find_extent(const Driver& driver, Address address, Address& begin, std::size_t& size) {
  if (driver.mem_get_address_range(&begin, &size, address) == Result::kSuccess) {
    return true;
  }
  const auto get = [&](void* value, PointerFact which) {
    return driver.pointer_get_attribute(value, which, address) == Result::kSuccess;
  };
  return get(&begin, PointerFact::kMappingBegin) && get(&size, PointerFact::kMappingSize);
}

}  // namespace

Device* Device::find(const Driver& driver, int ordinal, std::string& problem) {
  Devices& all = devices();
  const std::lock_guard lock(all.mutex);
  if (const auto found = all.known.find(ordinal); found != all.known.end()) {
    return found->second.get();
  }
  ContextHandle context = nullptr;
  Uuid uuid;
  if (const Result got = driver.device_get_uuid(&uuid, ordinal); got != Result::kSuccess) {
    problem = describe(driver, "cuDeviceGetUuid", got);
    return nullptr;
  }
  const Result retained = driver.device_primary_ctx_retain(&context, ordinal);
  if (retained != Result::kSuccess) {
    problem = describe(driver, "cuDevicePrimaryCtxRetain", retained);
    return nullptr;
  }
  auto made = std::make_unique<Device>(driver, ordinal, context, uuid);
  return all.known.emplace(ordinal, std::move(made)).first->second.get();
}

const Kernels* Device::kernels() {
  {
    const std::lock_guard lock(mutex_);
    if (kernels_ != nullptr) {
      return kernels_->loaded() ? kernels_.get() : nullptr;
    }
  }
  // Without the lock: a driver may not return.
  std::string problem;
  Kernels made = Kernels::load(driver_, problem);
  const std::lock_guard lock(mutex_);
  if (kernels_ == nullptr) {
    kernels_ = std::make_unique<const Kernels>(made);
    kernels_problem_ = problem;
  } else if (made.loaded()) {  // another thread was faster
    made.unload(driver_);
  }
  return kernels_->loaded() ? kernels_.get() : nullptr;
}

std::string Device::kernels_problem() {
  const std::lock_guard lock(mutex_);
  return kernels_problem_;
}

StreamLease::StreamLease(Device& device) : device_(device) {
  {
    const std::lock_guard lock(device.mutex_);
    if (!device.idle_.empty()) {
      leased_ = std::move(device.idle_.back());
      device.idle_.pop_back();
      return;
    }
  }
  leased_ = std::make_unique<CopyStream>();
  const Driver& driver = device.driver();
  result_ = driver.stream_create(&leased_->stream, kNonBlocking);
  for (std::size_t i = 0; result_ == Result::kSuccess && i < kMostInFlight; ++i) {
    result_ = driver.event_create(&leased_->events.at(i), kNoTiming);
  }
  if (result_ == Result::kSuccess) {
    return;
  }
  for (EventHandle event : leased_->events) {
    if (event != nullptr) {
      driver.event_destroy(event);
    }
  }
  if (leased_->stream != nullptr) {
    driver.stream_destroy(leased_->stream);
  }
}

StreamLease::~StreamLease() {
  if (result_ == Result::kSuccess) {
    const std::lock_guard lock(device_.mutex_);
    device_.idle_.push_back(std::move(leased_));
  }
}

CopyItem* StreamLease::list(std::size_t i) {
  if (leased_->lists == nullptr) {
    void* memory = nullptr;
    const std::size_t size = kMostInFlight * kMostItems * sizeof(CopyItem);
    if (device_.driver().mem_host_alloc(&memory, size, kPortable) != Result::kSuccess) {
      return nullptr;
    }
    leased_->lists = static_cast<CopyItem*>(memory);
  }
  return leased_->lists + i * kMostItems;
}

std::optional<int> device_of(const Driver& driver, Address address) {
  const bool on_device =
      fact(driver, PointerFact::kMemoryType, address) == static_cast<int>(kOnDevice);
  if (!on_device || fact(driver, PointerFact::kIsManaged, address).value_or(0) != 0) {
    return std::nullopt;
  }
  return fact(driver, PointerFact::kDevice, address);
}

bool AllocationCheck::contains(Address address, std::uint64_t size) {
  return known(address, size) ||
         (find_extent(driver_, address, begin_, size_) && known(address, size));
}

std::vector<Uuid> identities(const Driver& driver) {
  std::vector<Uuid> found;
  int count = 0;
  if (driver.device_get_count(&count) == Result::kSuccess) {
    found.resize(static_cast<std::size_t>(count));
  }
  for (std::size_t ordinal = 0; ordinal < found.size(); ++ordinal) {
    driver.device_get_uuid(&found[ordinal], static_cast<int>(ordinal));
  }
  return found;
}

std::optional<int> ordinal_of(const Driver& driver, const Uuid& uuid) {
  const std::vector<Uuid> all = identities(driver);
  const auto found = std::find(all.begin(), all.end(), uuid);
  return found == all.end() ? std::nullopt
                            : std::optional(static_cast<int>(std::distance(all.begin(), found)));
}

}  // namespace ldd::cuda
