#include "cuda/virtual_memory.h"

#include <fcntl.h>

#include <cstdint>
#include <utility>

namespace ldd::cuda {

namespace {

Properties properties_of(const Device& device) {
  const Driver& driver = device.driver();
  int over_rdma = 0;
  driver.device_get_attribute(&over_rdma, DeviceFact::kVirtualOverRdma, device.ordinal());
  Properties properties;
  properties.handle_types = kDescriptorHandle;
  properties.location.id = device.ordinal();
  properties.over_rdma = over_rdma != 0 ? 1 : 0;
  return properties;
}

}  // namespace

Result Physical::make(Device& device, std::size_t size, Physical& made) {
  const Properties properties = properties_of(device);
  MemoryHandle handle = 0;
  const Result result = device.driver().mem_create(&handle, size, &properties, 0);
  if (result == Result::kSuccess) {
    made = Physical(device, handle);
  }
  return result;
}

Result Physical::at(Device& device, Address address, Physical& found) {
  MemoryHandle handle = 0;
  const Result result =
      device.driver().mem_retain_handle(&handle, reinterpret_cast<void*>(address));
  if (result == Result::kSuccess) {
    found = Physical(device, handle);
  }
  return result;
}

Result Physical::of_descriptor(Device& device, int fd, Physical& found) {
  MemoryHandle handle = 0;
  void* const shareable = reinterpret_cast<void*>(static_cast<std::intptr_t>(fd));
  const Result result = device.driver().mem_import(&handle, shareable, kDescriptorHandle);
  if (result == Result::kSuccess) {
    found = Physical(device, handle);
  }
  return result;
}

Physical::~Physical() {
  if (device_ == nullptr || mark_.inherited()) {
    return;
  }
  const Current current(device_->driver(), device_->context());
  if (current.result() == Result::kSuccess) {
    device_->driver().mem_release(handle_);
  }
}

Result Physical::export_descriptor(UniqueFd& made) const {
  int fd = -1;
  const Result result = device_->driver().mem_export(&fd, handle_, kDescriptorHandle, 0);
  if (result == Result::kSuccess) {
    made.reset(fd);
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);  // the driver need not have set it
  }
  return result;
}

Result granularity(const Device& device, std::size_t& size) {
  const Properties properties = properties_of(device);
  constexpr int kMinimum = 0;
  return device.driver().mem_get_granularity(&size, &properties, kMinimum);
}

Result Reservation::make(Device& device, std::size_t size, std::unique_ptr<Reservation>& made) {
  Address begin = 0;
  const Result result = device.driver().mem_address_reserve(&begin, size, 0, 0, 0);
  if (result == Result::kSuccess) {
    made = std::make_unique<Reservation>(device, begin, size);
  }
  return result;
}

Reservation::~Reservation() {
  if (mark_.inherited()) {
    return;  // the driver does not survive a fork, and the mappings are the parent's
  }
  const Driver& driver = device_.driver();
  const Current current(driver, device_.context());
  if (current.result() != Result::kSuccess) {
    return;
  }
  for (const auto& [offset, size] : mapped_) {
    driver.mem_unmap(begin_ + offset, size);
  }
  driver.mem_address_free(begin_, size_);
}

Result Reservation::map(std::size_t offset, std::size_t size, const Physical& memory, int access) {
  if (offset > size_ || size > size_ - offset) {
    return Result::kInvalidValue;
  }
  const Result mapped = device_.driver().mem_map(begin_ + offset, size, 0, memory.handle(), 0);
  if (mapped != Result::kSuccess) {
    return mapped;
  }
  mapped_[offset] = size;
  const Result allowed = allow(offset, size, access);
  if (allowed != Result::kSuccess) {
    unmap(offset);
  }
  return allowed;
}

Result Reservation::unmap(std::size_t offset) {
  const auto found = mapped_.find(offset);
  if (found == mapped_.end()) {
    return Result::kInvalidValue;
  }
  const Result result = device_.driver().mem_unmap(begin_ + offset, found->second);
  if (result == Result::kSuccess) {
    mapped_.erase(found);
  }
  return result;
}

// Mappings of virtual memory have rights of their own: those of peer access do not apply to them.
Result Reservation::allow(std::size_t offset, std::size_t size, int access) {
  const Driver& driver = device_.driver();
  const Access own{{1, device_.ordinal()}, access};
  const Result result = driver.mem_set_access(begin_ + offset, size, &own, 1);
  int count = 0;
  if (result != Result::kSuccess || driver.device_get_count(&count) != Result::kSuccess) {
    return result;
  }
  for (int other = 0; other < count; ++other) {
    int can = 0;
    if (other == device_.ordinal() ||
        driver.device_can_access_peer(&can, other, device_.ordinal()) != Result::kSuccess ||
        can == 0) {
      continue;
    }
    const Access more{{1, other}, access};
    driver.mem_set_access(begin_ + offset, size, &more, 1);  // without it that GPU's copies fail
  }
  return result;
}

}  // namespace ldd::cuda
