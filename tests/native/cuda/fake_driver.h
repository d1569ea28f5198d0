// The functions of the stand-in for a driver that tests call themselves.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "check.h"

namespace ldd_test {

class FakeDriver {
 public:
  FakeDriver() : library_(::dlopen("libcuda.so.1", RTLD_NOW)) { CHECK(library_ != nullptr); }

  template <typename... Arguments>
  int call(const char* name, Arguments... arguments) const {
    void* const function = ::dlsym(library_, name);
    CHECK(function != nullptr);
    return reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
  }

  // Memory of a device, filled with one byte.
  [[nodiscard]] std::uint64_t allocate(int device, std::size_t size, unsigned char byte) const {
    void* context = nullptr;
    std::uint64_t address = 0;
    CHECK(call("cuDevicePrimaryCtxRetain", &context, device) == 0);
    CHECK(call("cuCtxPushCurrent_v2", context) == 0);
    CHECK(call("cuMemAlloc_v2", &address, size) == 0);
    const std::vector<unsigned char> bytes(size, byte);
    CHECK(call("cuMemcpyHtoD_v2", address, static_cast<const void*>(bytes.data()), size) == 0);
    CHECK(call("cuCtxPopCurrent_v2", &context) == 0);
    return address;
  }

 private:
  void* library_;
};

}  // namespace ldd_test
