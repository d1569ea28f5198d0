// Pools of GPUs' memory, and host memory that GPUs reach directly.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/released_gil.h"
#include "cuda/device_pool.h"
#include "cuda/registered_memory.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::cuda::DevicePool;
using ldd::cuda::Result;

std::tuple<std::shared_ptr<DevicePool>, bool, std::string> make_pool(int ordinal,
                                                                     std::size_t size) {
  const ReleasedGil release;
  Result result = Result::kSuccess;
  std::string problem;
  auto pool = DevicePool::make(ordinal, size, result, problem);
  return {std::move(pool), result == Result::kOutOfMemory, problem};
}

std::pair<bool, std::string> replace(DevicePool& pool, const std::vector<std::uint64_t>& begins,
                                     const std::vector<std::uint64_t>& sizes) {
  if (begins.size() != sizes.size()) {
    throw nb::value_error("begins and sizes differ in length");
  }
  std::vector<ldd::cuda::Lost> ranges;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    ranges.push_back({begins[i], sizes[i]});
  }
  const ReleasedGil release;
  std::string problem;
  const Result result = pool.replace(ranges, problem);
  return {result == Result::kOutOfMemory, problem};
}

}  // namespace

void bind_gpu_memory(nb::module_& module);
void bind_gpu_memory(nb::module_& module) {
  nb::class_<DevicePool>(module, "GpuPool", "Memory of a GPU that other processes can map.")
      .def_prop_ro("address", &DevicePool::address, "Its first byte.")
      .def_prop_ro("size", &DevicePool::size, "Bytes, a multiple of what the driver allocates.")
      .def_prop_ro("piece_bytes", &DevicePool::piece_bytes,
                   "Bytes of each allocation of which it consists; the last one may be shorter.")
      .def("replace", replace, "begins"_a, "sizes"_a,
           "Put new memory behind the allocations that have bytes of the ranges; keep all other "
           "bytes.\n\n"
           "No work with the pool may be in progress. Returns (whether the GPU is full, why it was "
           "not possible\nor \"\"); then nothing has changed.")
      .def("close", &DevicePool::close, nb::call_guard<ReleasedGil>(),
           "Free the memory, which must not be in use any more. Idempotent.");
  module.def("make_gpu_pool", make_pool, "ordinal"_a, "size"_a,
             "Return (pool or None, whether the GPU is full, why there is none).");
  module.def("gpu_memory", &ldd::cuda::memory_of, "ordinal"_a, nb::call_guard<ReleasedGil>(),
             "Return the free and all bytes of a GPU's memory.");
  module.def("pin_host_memory", &ldd::cuda::pin_memory, "ordinal"_a, "address"_a, "size"_a,
             nb::call_guard<ReleasedGil>(),
             "Pin host memory for all GPUs, by the context of one; return why not, or \"\".");
  module.def("unpin_host_memory", &ldd::cuda::unpin_memory, "ordinal"_a, "address"_a,
             nb::call_guard<ReleasedGil>(), "Undo it, before the memory is unmapped.");
}
