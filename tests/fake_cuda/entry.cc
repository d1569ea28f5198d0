// cuGetProcAddress: finds the functions of this library by name and version, as the driver does.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "state.h"

namespace fake {

namespace {

struct Since {
  const char* name;
  int version;
};

// From which version on a name means the function with that suffix; a lower version has none.
constexpr Since kVersioned[] = {
    {"cuMemAlloc", 3020},           {"cuMemFree", 3020},
    {"cuMemcpyHtoD", 3020},         {"cuMemcpyDtoH", 3020},
    {"cuMemGetAddressRange", 3020}, {"cuMemsetD8", 3020},
    {"cuCtxPushCurrent", 4000},     {"cuCtxPopCurrent", 4000},
    {"cuStreamDestroy", 4000},      {"cuEventDestroy", 4000},
    {"cuMemHostRegister", 6050},    {"cuDevicePrimaryCtxRelease", 11000},
    {"cuIpcOpenMemHandle", 11000},  {"cuDeviceGetUuid", 11040},
    {"cuMemGetInfo", 3020},
};

}  // namespace
}  // namespace fake

extern "C" {

int cuGetProcAddress_v2(const char* name, void** function, int version, std::uint64_t,
                        int* status) {
  std::string symbol = name;
  for (const fake::Since& each : fake::kVersioned) {
    if (symbol == each.name) {
      symbol += version >= each.version ? "_v2" : "_v1";
      break;
    }
  }
  const char* const without = std::getenv("FAKE_CUDA_WITHOUT");
  if (without != nullptr && std::string(without) == name) {
    symbol += "_of_no_driver";
  }
  // The library may be loaded without its names being visible to others.
  Dl_info self{};
  ::dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &self);
  void* const library = ::dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *function = library == nullptr ? nullptr : ::dlsym(library, symbol.c_str());
  if (status != nullptr) {
    *status = *function == nullptr ? 1 : 0;
  }
  return *function == nullptr ? fake::kNotFound : fake::kSuccess;
}

// Tells this library from a driver.
int fake_cuda_version() { return 1; }
}
