#include "cuda/sharing.h"

#include <utility>

namespace ldd::cuda {

namespace {

Device* find_device(const Driver& driver, const Uuid& gpu, std::string& problem) {
  const std::optional<int> ordinal = ordinal_of(driver, gpu);
  if (!ordinal) {
    problem = "the peer's GPU is not visible in this process (CUDA_VISIBLE_DEVICES)";
    return nullptr;
  }
  return Device::find(driver, *ordinal, problem);
}

// Whether the driver makes IPC handles of such memory; it cannot be asked about memory that has no
// address.
bool has_ipc_handle(const Driver& driver, Address address) {
  int has = 0;
  const Result result = driver.pointer_get_attribute(&has, PointerFact::kHasIpcHandle, address);
  return result == Result::kSuccess && has != 0;
}

// Fills in an allocation of cuMemAlloc. False, with a reason, if the driver does not know it.
bool export_by_ipc(const Driver& driver, Address address, Allocation& made, std::string& problem) {
  if (const Result result = driver.mem_get_address_range(&made.begin, &made.size, address);
      result != Result::kSuccess) {
    problem = describe(driver, "cuMemGetAddressRange", result);
    return false;
  }
  const bool has_handle = driver.ipc_get_mem_handle(&made.handle, made.begin) == Result::kSuccess;
  made.sharing = has_handle ? Sharing::kIpc : Sharing::kNone;
  return true;
}

// Fills in one mapping of virtual memory. False, with a reason, if the driver does not know it or
// makes no descriptor.
bool export_mapping(const Device& device, Address address, const Physical& memory, Allocation& made,
                    std::string& problem) {
  const Driver& driver = device.driver();
  Result result = driver.pointer_get_attribute(&made.begin, PointerFact::kMappingBegin, address);
  if (result == Result::kSuccess) {
    result = driver.pointer_get_attribute(&made.size, PointerFact::kMappingSize, address);
  }
  if (result != Result::kSuccess) {
    problem = describe(driver, "cuPointerGetAttribute(MAPPING_SIZE)", result) +
              ": virtual memory needs a driver that knows its mappings, update it";
    return false;
  }
  result = memory.export_descriptor(made.descriptor);
  if (result == Result::kInvalidValue) {
    made.sharing = Sharing::kUnshareable;
    return true;
  }
  if (result != Result::kSuccess) {
    problem = describe(driver, "cuMemExportToShareableHandle", result) +
              ": each allocation of virtual memory takes a descriptor, see ulimit -n";
    return false;
  }
  made.sharing = Sharing::kDescriptor;
  return true;
}

}  // namespace

std::optional<Allocation> export_allocation(const Driver& driver, Address address,
                                            std::string& problem) {
  const std::optional<int> ordinal = device_of(driver, address);
  Device* const device = ordinal ? Device::find(driver, *ordinal, problem) : nullptr;
  if (device == nullptr) {
    problem = problem.empty() ? "the address is no GPU's" : problem;
    return std::nullopt;
  }
  Allocation made;
  made.gpu = device->uuid();
  const Current current(driver, device->context());
  if (has_ipc_handle(driver, address)) {
    return export_by_ipc(driver, address, made, problem) ? std::optional(std::move(made))
                                                         : std::nullopt;
  }
  Physical memory;
  if (Physical::at(*device, address, memory) != Result::kSuccess) {
    made.sharing = Sharing::kUnshareable;  // a stream's pool
    const Result found = driver.mem_get_address_range(&made.begin, &made.size, address);
    problem = found == Result::kSuccess ? "" : describe(driver, "cuMemGetAddressRange", found);
    return found == Result::kSuccess ? std::optional(std::move(made)) : std::nullopt;
  }
  return export_mapping(*device, address, memory, made, problem) ? std::optional(std::move(made))
                                                                 : std::nullopt;
}

std::shared_ptr<Mapping> Mapping::open(const Driver& driver, const Uuid& gpu,
                                       const IpcHandle& handle, std::size_t size,
                                       std::string& problem) {
  Device* const device = find_device(driver, gpu, problem);
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

std::shared_ptr<Mapping> Mapping::open(const Driver& driver, const Uuid& gpu, int descriptor,
                                       std::size_t size, std::string& problem) {
  Device* const device = find_device(driver, gpu, problem);
  if (device == nullptr) {
    return nullptr;
  }
  const Current current(driver, device->context());
  Physical memory;
  std::unique_ptr<Reservation> reserved;
  const auto failed = [&](const char* function, Result result) {
    problem = describe(driver, function, result);
    return nullptr;
  };
  if (const Result result = Physical::of_descriptor(*device, descriptor, memory);
      result != Result::kSuccess) {
    return failed("cuMemImportFromShareableHandle", result);
  }
  if (const Result result = Reservation::make(*device, size, reserved);
      result != Result::kSuccess) {
    return failed("cuMemAddressReserve", result);
  }
  Result result = reserved->map(0, size, memory, kReadOnly);
  if (result != Result::kSuccess) {  // a driver need not have that right
    result = reserved->map(0, size, memory, kReadWrite);
  }
  if (result != Result::kSuccess) {
    return failed("cuMemMap or cuMemSetAccess", result);
  }
  return std::make_shared<Mapping>(*device, std::move(reserved));
}

Mapping::~Mapping() {
  if (mark_.inherited() || reserved_ != nullptr) {
    return;  // the driver does not survive a fork, and the mapping is the parent's
  }
  const Driver& driver = device_.driver();
  const Current current(driver, device_.context());
  if (current.result() == Result::kSuccess) {
    driver.ipc_close_mem_handle(address_);
  }
}

}  // namespace ldd::cuda
