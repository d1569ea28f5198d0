// Without a driver each function says so, and nothing is loaded.
#include <dlfcn.h>

#include <cerrno>

#include "check.h"
#include "cuda/copy.h"
#include "cuda/driver.h"

int main() {
  const ldd::cuda::Loaded present = ldd::cuda::present_driver();
  CHECK(present.driver == nullptr && !present.problem.empty());
  CHECK(::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD) == nullptr);
  if (::dlopen("libcuda.so.1", RTLD_NOW) != nullptr) {
    return 0;  // this machine has one
  }
  const ldd::cuda::Loaded loaded = ldd::cuda::load_driver();
  CHECK(loaded.driver == nullptr);
  CHECK(loaded.problem.find("libcuda.so.1 cannot be loaded") != std::string::npos);
  std::byte from{1};
  std::byte to{};
  const iovec source{&from, 1};
  const iovec destination{&to, 1};
  const ldd::Outcome outcome = ldd::cuda::copy_pairs(0, &destination, &source, 1);
  CHECK(outcome.code == ldd::Code::kSystem && outcome.sys_errno == ENODEV);
  return 0;
}
