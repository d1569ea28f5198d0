#include "cuda/driver.h"

#include <dlfcn.h>
#include <link.h>

#include <cstddef>
#include <mutex>
#include <utility>

#include "base/fork.h"

namespace ldd::cuda {

namespace {

constexpr const char* kLibrary = "libcuda.so.1";

// Finds functions by name and by the version of the API whose parameters the caller passes.
class Finder {
 public:
  explicit Finder(void* library)
      : with_status_(function<WithStatus>(library, "cuGetProcAddress_v2")),
        without_status_(function<WithoutStatus>(library, "cuGetProcAddress")) {}

  template <typename F>
  void find(F*& target, const char* name, int version) {
    find_if_any(target, name, version);
    if (target == nullptr) {
      missing_ = missing_.empty() ? name : missing_;
    }
  }

  // Leaves `target` as it is if this driver has no such function.
  template <typename F>
  void find_if_any(F*& target, const char* name, int version) {
    void* found = nullptr;
    Result result = Result::kInvalidValue;
    if (with_status_ != nullptr) {
      int status = 0;
      result = with_status_(name, &found, version, 0, &status);
    } else if (without_status_ != nullptr) {
      result = without_status_(name, &found, version, 0);
    }
    if (result == Result::kSuccess && found != nullptr) {
      target = reinterpret_cast<F*>(found);
    }
  }

  [[nodiscard]] bool usable() const {
    return with_status_ != nullptr || without_status_ != nullptr;
  }
  // The first function that was not found, or "".
  [[nodiscard]] const std::string& missing() const { return missing_; }

 private:
  using WithStatus = Result(const char*, void**, int, std::uint64_t, int*);
  using WithoutStatus = Result(const char*, void**, int, std::uint64_t);

  template <typename F>
  static F* function(void* library, const char* name) {
    return reinterpret_cast<F*>(::dlsym(library, name));
  }

  WithStatus* with_status_;        // since CUDA 12.0
  WithoutStatus* without_status_;  // since CUDA 11.3
  std::string missing_;
};

void find_all(Finder& finder, Driver& driver) {
  finder.find(driver.init, "cuInit", 2000);
  finder.find(driver.get_error_name, "cuGetErrorName", 6000);
  finder.find(driver.driver_get_version, "cuDriverGetVersion", 2020);
  finder.find(driver.device_get_count, "cuDeviceGetCount", 2000);
  finder.find(driver.device_get_uuid, "cuDeviceGetUuid", 11040);
  finder.find(driver.device_primary_ctx_retain, "cuDevicePrimaryCtxRetain", 7000);
  finder.find(driver.device_get_attribute, "cuDeviceGetAttribute", 2000);
  finder.find(driver.device_can_access_peer, "cuDeviceCanAccessPeer", 4000);
  finder.find(driver.ctx_push_current, "cuCtxPushCurrent", 4000);
  finder.find(driver.ctx_pop_current, "cuCtxPopCurrent", 4000);
  finder.find(driver.pointer_get_attribute, "cuPointerGetAttribute", 4000);
  finder.find(driver.mem_get_address_range, "cuMemGetAddressRange", 3020);
  finder.find(driver.mem_get_info, "cuMemGetInfo", 3020);
  finder.find(driver.mem_host_alloc, "cuMemHostAlloc", 2020);
  finder.find(driver.mem_free_host, "cuMemFreeHost", 2000);
  finder.find(driver.mem_host_register, "cuMemHostRegister", 6050);
  finder.find(driver.mem_host_unregister, "cuMemHostUnregister", 4000);
  finder.find(driver.stream_create, "cuStreamCreate", 2000);
  finder.find(driver.stream_destroy, "cuStreamDestroy", 4000);
  finder.find(driver.stream_query, "cuStreamQuery", 2000);
  finder.find(driver.stream_get_ctx, "cuStreamGetCtx", 9020);
  finder.find(driver.memcpy_async, "cuMemcpyAsync", 4000);
  finder.find_if_any(driver.memcpy_batch_async, "cuMemcpyBatchAsync", 12080);
  finder.find(driver.event_create, "cuEventCreate", 2000);
  finder.find(driver.event_destroy, "cuEventDestroy", 4000);
  finder.find(driver.event_record, "cuEventRecord", 2000);
  finder.find(driver.event_query, "cuEventQuery", 2000);
  finder.find(driver.module_load_data, "cuModuleLoadData", 2000);
  finder.find(driver.module_unload, "cuModuleUnload", 2000);
  finder.find(driver.module_get_function, "cuModuleGetFunction", 2000);
  finder.find(driver.launch_kernel, "cuLaunchKernel", 4000);
  finder.find(driver.ipc_get_mem_handle, "cuIpcGetMemHandle", 4010);
  finder.find(driver.ipc_open_mem_handle, "cuIpcOpenMemHandle", 11000);
  finder.find(driver.ipc_close_mem_handle, "cuIpcCloseMemHandle", 4010);
}

void find_virtual_memory(Finder& finder, Driver& driver) {
  finder.find(driver.mem_get_granularity, "cuMemGetAllocationGranularity", 10020);
  finder.find(driver.mem_address_reserve, "cuMemAddressReserve", 10020);
  finder.find(driver.mem_address_free, "cuMemAddressFree", 10020);
  finder.find(driver.mem_create, "cuMemCreate", 10020);
  finder.find(driver.mem_release, "cuMemRelease", 10020);
  finder.find(driver.mem_map, "cuMemMap", 10020);
  finder.find(driver.mem_unmap, "cuMemUnmap", 10020);
  finder.find(driver.mem_set_access, "cuMemSetAccess", 10020);
  finder.find(driver.mem_retain_handle, "cuMemRetainAllocationHandle", 11000);
  finder.find(driver.mem_export, "cuMemExportToShareableHandle", 10020);
  finder.find(driver.mem_import, "cuMemImportFromShareableHandle", 10020);
}

// Never destroyed: threads may outlive static destructors, and the library stays loaded.
struct Shared {
  std::mutex mutex;
  Driver driver;
  bool ready = false;
  unsigned long long objects_without = 0;  // loaded when the library was not among them; 0: never
  ProcessMark mark;
};

Shared& shared() {
  static Shared* const one = new Shared;  // NOLINT(cppcoreguidelines-owning-memory)
  return *one;
}

std::string find_functions(void* library, Driver& driver) {
  Finder finder(library);
  if (!finder.usable()) {
    return std::string(kLibrary) + " is older than CUDA 11.3: update the driver";
  }
  find_all(finder, driver);
  find_virtual_memory(finder, driver);
  if (!finder.missing().empty()) {
    return std::string(kLibrary) + " has no " + finder.missing() + ": update the driver";
  }
  return "";
}

std::string initialize(const Driver& driver) {
  if (const Result result = driver.init(0); result != Result::kSuccess) {
    return describe(driver, "cuInit", result);
  }
  int count = 0;
  if (const Result result = driver.device_get_count(&count); result != Result::kSuccess) {
    return describe(driver, "cuDeviceGetCount", result);
  }
  return count > 0 ? "" : "the driver finds no GPU";
}

// Shared objects that this process has loaded so far, also those that were unloaded since.
unsigned long long objects_loaded() {
  unsigned long long count = 0;
  const auto note = [](dl_phdr_info* first, std::size_t, void* found) {
    *static_cast<unsigned long long*>(found) = first->dlpi_adds;
    return 1;  // it is the same for each object
  };
  ::dl_iterate_phdr(note, &count);
  return count;
}

Loaded open(int flags) {
  Shared& state = shared();
  if (state.mark.inherited()) {  // before the lock, which a thread of the parent may hold
    return {nullptr, "a GPU's driver does not survive a fork: start the process with spawn"};
  }
  const std::lock_guard lock(state.mutex);
  if (state.ready) {
    return {&state.driver, ""};
  }
  // Every registration asks, and dlopen searches the file system each time.
  const bool is_loaded_only = (flags & RTLD_NOLOAD) != 0;
  const unsigned long long objects = objects_loaded();
  if (is_loaded_only && objects != 0 && objects == state.objects_without) {
    return {nullptr, std::string(kLibrary) + " cannot be loaded (it is not loaded yet)"};
  }
  void* const library = ::dlopen(kLibrary, flags);  // never closed: the driver has threads
  if (library == nullptr) {
    const char* const reason = ::dlerror();
    state.objects_without = objects;
    return {nullptr, std::string(kLibrary) + " cannot be loaded (" +
                         (reason == nullptr ? "it is not loaded yet" : reason) + ")"};
  }
  Driver driver;
  std::string problem = find_functions(library, driver);
  if (!problem.empty()) {
    return {nullptr, std::move(problem)};
  }
  state.driver = driver;
  state.ready = true;
  return {&state.driver, ""};
}

}  // namespace

Loaded load_driver() {
  Loaded loaded = open(RTLD_NOW | RTLD_LOCAL);
  if (loaded.driver != nullptr) {
    loaded.problem = initialize(*loaded.driver);
    loaded.driver = loaded.problem.empty() ? loaded.driver : nullptr;
  }
  return loaded;
}

Loaded present_driver() { return open(RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD); }

std::string describe(const Driver& driver, const char* function, Result result) {
  const char* name = nullptr;
  if (driver.get_error_name(result, &name) != Result::kSuccess || name == nullptr) {
    name = "an unknown error";
  }
  return std::string(function) + " of the GPU's driver failed with " +
         std::to_string(static_cast<int>(result)) + " (" + name + ")";
}

}  // namespace ldd::cuda
