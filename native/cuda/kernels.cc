#include "cuda/kernels.h"

#include <algorithm>

namespace ldd::cuda {

namespace {

constexpr unsigned kCopyThreads = 512;
constexpr unsigned kSumThreads = 256;  // as kernels.cu has it
constexpr unsigned kMostBlocks = 1024;

Result launch(const Driver& driver, FunctionHandle function, StreamHandle stream,
              std::uint32_t count, unsigned threads, void** arguments) {
  const unsigned blocks = std::min<std::uint32_t>(count, kMostBlocks);
  return driver.launch_kernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
}

}  // namespace

Kernels Kernels::load(const Driver& driver, std::string& problem) {
  Kernels made;
  const char* function = "cuModuleLoadData";
  Result result = driver.module_load_data(&made.module_, kKernelsPtx);
  if (result == Result::kSuccess) {
    function = "cuModuleGetFunction";
    result = driver.module_get_function(&made.copy_list_, made.module_, "ldd_copy_list");
    if (result == Result::kSuccess) {
      result = driver.module_get_function(&made.crc32c_list_, made.module_, "ldd_crc32c_list");
    }
    if (result != Result::kSuccess) {
      made.unload(driver);
    }
  }
  if (result != Result::kSuccess) {
    problem = describe(driver, function, result);
    return {};
  }
  return made;
}

void Kernels::unload(const Driver& driver) {
  driver.module_unload(module_);
  *this = {};
}

Result Kernels::copy(const Driver& driver, StreamHandle stream, const CopyItem* items,
                     std::uint32_t count) const {
  auto list = reinterpret_cast<Address>(items);
  void* arguments[] = {&list, &count};
  return launch(driver, copy_list_, stream, count, kCopyThreads, arguments);
}

Result Kernels::crc32c(const Driver& driver, StreamHandle stream, const Segment* segments,
                       std::uint32_t count, std::uint32_t* sums) const {
  auto list = reinterpret_cast<Address>(segments);
  auto result = reinterpret_cast<Address>(sums);
  void* arguments[] = {&list, &count, &result};
  return launch(driver, crc32c_list_, stream, count, kSumThreads, arguments);
}

}  // namespace ldd::cuda
