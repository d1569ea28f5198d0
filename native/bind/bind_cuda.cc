// GPUs: the driver, and which addresses are whose.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bind/casters.h"
#include "bind/released_gil.h"
#include "cuda/device.h"
#include "memory/entries.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;

std::string load_gpu_driver() {
  const ReleasedGil release;
  return ldd::cuda::load_driver().problem;
}

std::vector<int> gpus_of(const BorrowedU64& addresses) {
  const auto wanted = addresses.span();
  std::vector<int> found(wanted.size(), ldd::kHostMemory);
  const ReleasedGil release;
  const ldd::cuda::Loaded loaded = ldd::cuda::present_driver();
  for (std::size_t i = 0; loaded.driver != nullptr && i < wanted.size(); ++i) {
    found[i] = ldd::cuda::device_of(*loaded.driver, wanted[i]).value_or(ldd::kHostMemory);
  }
  return found;
}

std::string prepare_gpu(int ordinal) {
  const ReleasedGil release;
  const ldd::cuda::Loaded loaded = ldd::cuda::present_driver();
  std::string problem = loaded.problem;
  if (loaded.driver != nullptr) {
    ldd::cuda::Device::find(*loaded.driver, ordinal, problem);
  }
  return problem;
}

}  // namespace

void bind_cuda(nb::module_& module);
void bind_cuda(nb::module_& module) {
  module.def("load_gpu_driver", load_gpu_driver,
             "Load and initialize the driver of NVIDIA GPUs; return why there is none, or \"\".");
  module.def("gpus_of", gpus_of, "addresses"_a,
             "Return for each address the ordinal of the GPU whose memory it is, -1 for host "
             "memory.\n\n"
             "Managed memory counts as host memory. Loads nothing: without a driver in this "
             "process all is\nhost memory.");
  module.def("prepare_gpu", prepare_gpu, "ordinal"_a,
             "Make a GPU's memory usable for the library's threads; return why it is not, or \"\"."
             "\n\nRetains its primary context for the life of the process. The caller's context "
             "stays current.");
}
