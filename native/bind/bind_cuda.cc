// Memory of GPUs: the driver, the GPU that an address belongs to, and exported allocations.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bind/casters.h"
#include "bind/released_gil.h"
#include "cuda/device.h"
#include "host/gpu_exports.h"
#include "memory/entries.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::BorrowedU64;
using ldd::GpuExports;

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

std::vector<std::string> gpu_identities() {
  const ReleasedGil release;
  const ldd::cuda::Loaded loaded = ldd::cuda::present_driver();
  std::vector<std::string> found;
  if (loaded.driver == nullptr) {
    return found;
  }
  for (const ldd::cuda::Uuid& uuid : ldd::cuda::identities(*loaded.driver)) {
    std::string text;
    for (const std::byte byte : uuid.bytes) {
      constexpr const char* kDigits = "0123456789abcdef";
      text += kDigits[std::to_integer<unsigned>(byte) >> 4];
      text += kDigits[std::to_integer<unsigned>(byte) & 15];
    }
    found.push_back(text);
  }
  return found;
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
  module.def(
      "gpu_identities", gpu_identities,
      "Return the identity of each GPU that this process sees, 32 hexadecimal digits, the same "
      "in each\nprocess.");
  nb::class_<GpuExports>(module, "GpuExports",
                         "Allocations of GPUs that peers on this host may map. Thread-safe.")
      .def(nb::init<std::shared_ptr<ldd::Node>>(), "node"_a)
      .def(
          "add", &GpuExports::add, "address"_a, "size"_a, nb::call_guard<ReleasedGil>(),
          "Publish the allocations of a range of addresses, unless that is done already.\n\n"
          "Returns why that is not possible, or \"\". It succeeds for memory that no other process "
          "can map;\npeers find the reason then.")
      .def("remove", &GpuExports::remove, "address"_a, "size"_a, nb::call_guard<ReleasedGil>(),
           "Undo one add() of that range.")
      .def("renew", &GpuExports::renew, "address"_a, "size"_a, nb::call_guard<ReleasedGil>(),
           "Publish the allocations of a range again, whose memory was replaced.");
}
