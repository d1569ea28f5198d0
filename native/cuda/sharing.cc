#include "cuda/sharing.h"

namespace ldd::cuda {

std::optional<Allocation> export_allocation(const Driver& driver, Address address,
                                            std::string& problem) {
  Allocation made;
  const std::optional<int> ordinal = device_of(driver, address);
  const Device* const device = ordinal ? Device::find(driver, *ordinal, problem) : nullptr;
  if (device == nullptr) {
    problem = problem.empty() ? "the address is no GPU's" : problem;
    return std::nullopt;
  }
  made.device = *ordinal;
  made.gpu = device->uuid();
  const Current current(driver, device->context());
  if (const Result result = driver.mem_get_address_range(&made.begin, &made.size, address);
      result != Result::kSuccess) {
    problem = describe(driver, "cuMemGetAddressRange", result);
    return std::nullopt;
  }
  if (const Result result = driver.ipc_get_mem_handle(&made.handle, made.begin);
      result != Result::kSuccess) {
    problem = describe(driver, "cuIpcGetMemHandle", result);
    made.handle = {};
  }
  return made;
}

std::shared_ptr<Mapping> Mapping::open(const Driver& driver, const Uuid& gpu,
                                       const IpcHandle& handle, std::size_t size,
                                       std::string& problem) {
  const std::optional<int> ordinal = ordinal_of(driver, gpu);
  if (!ordinal) {
    problem = "the peer's GPU is not visible in this process (CUDA_VISIBLE_DEVICES)";
    return nullptr;
  }
  Device* const device = Device::find(driver, *ordinal, problem);
  if (device == nullptr) {
    return nullptr;
  }
  const Current current(driver, device->context());
  Address address = 0;
  if (const Result result = driver.ipc_open_mem_handle(&address, handle, kEnablePeerAccess);
      result != Result::kSuccess) {
    problem = describe(driver, "cuIpcOpenMemHandle", result);
    return nullptr;
  }
  auto made = std::make_shared<Mapping>(*device, address);
  Address begin = 0;
  std::size_t mapped = 0;
  const Result result = driver.mem_get_address_range(&begin, &mapped, address);
  if (result != Result::kSuccess || begin != address || mapped < size) {
    problem = "the peer's GPU memory is smaller than it says";
    return nullptr;
  }
  return made;
}

Mapping::~Mapping() {
  if (mark_.inherited()) {
    return;  // the driver does not survive a fork, and the mapping is the parent's
  }
  const Driver& driver = device_.driver();
  const Current current(driver, device_.context());
  if (current.result() == Result::kSuccess) {
    driver.ipc_close_mem_handle(address_);
  }
}

}  // namespace ldd::cuda
