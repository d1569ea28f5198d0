// Points in the streams of the program, and single copies of a GPU's memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "bind/casters.h"
#include "bind/interruptible.h"
#include "bind/released_gil.h"
#include "cuda/copy.h"
#include "cuda/event.h"
#include "memory/node.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using ldd::Outcome;
using ldd::cuda::Event;

// Throws RuntimeError with the reason if `make` makes none.
template <typename Make>
std::shared_ptr<Event> event_of(const Make& make) {
  std::string problem;
  std::shared_ptr<Event> made;
  {
    const ReleasedGil release;
    const ldd::cuda::Loaded loaded = ldd::cuda::present_driver();
    problem = loaded.problem;
    made = loaded.driver == nullptr ? nullptr : make(*loaded.driver, problem);
  }
  if (made == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, problem.c_str());
    throw nb::python_error();
  }
  return made;
}

std::shared_ptr<Event> record(std::uint64_t stream, int device) {
  return event_of([&](const ldd::cuda::Driver& driver, std::string& problem) {
    return Event::record(driver, reinterpret_cast<void*>(stream), device, problem);
  });
}

std::shared_ptr<Event> borrow(std::uint64_t handle, int device) {
  return event_of([&](const ldd::cuda::Driver& driver, std::string& problem) {
    return Event::borrow(driver, reinterpret_cast<void*>(handle), device, problem);
  });
}

Outcome wait(const std::shared_ptr<Event>& event, std::int64_t deadline_ns, const ldd::Node* node) {
  return interruptible([&] {
    const auto more = [node] {
      if (node != nullptr && node->closed()) {
        return Outcome::failure(ldd::Code::kClosed);
      }
      const bool ends = ldd::Interruptible::due(false) && ldd::Interruptible::ask();
      return ends ? Outcome::failure(ldd::Code::kCancelled) : Outcome{};
    };
    return ldd::cuda::wait_for(event, deadline_ns, more);
  });
}

Outcome gpu_copy(int ordinal, std::uint64_t destination, std::uint64_t source, std::uint64_t size) {
  const ReleasedGil release;
  const iovec to{reinterpret_cast<void*>(destination), size};
  const iovec from{reinterpret_cast<void*>(source), size};
  return ldd::cuda::copy_pairs(ordinal, &to, &from, 1);
}

std::string gpu_kernels_problem(int ordinal) {
  const ReleasedGil release;
  const ldd::cuda::Loaded loaded = ldd::cuda::present_driver();
  std::string problem = loaded.problem;
  auto* const device = loaded.driver == nullptr
                           ? nullptr
                           : ldd::cuda::Device::find(*loaded.driver, ordinal, problem);
  if (device == nullptr) {
    return problem;
  }
  const ldd::cuda::Current current(*loaded.driver, device->context());
  device->kernels();
  return device->kernels_problem();
}

}  // namespace

void bind_gpu_event(nb::module_& module);
void bind_gpu_event(nb::module_& module) {
  module.def("gpu_copy", gpu_copy, "ordinal"_a, "dst"_a, "src"_a, "size"_a,
             "Copy one range through a GPU, with one call of its driver; for measurements.\n\n"
             "Either address is of a GPU or of the host. Returns (code, errno, index, "
             "moved_bytes).");
  module.def("gpu_kernels_problem", gpu_kernels_problem, "ordinal"_a,
             "Load the library's kernels into a GPU; return why its driver refuses them, or \"\".");
  nb::class_<Event>(module, "GpuEvent",
                    "A point in a stream of the program. Thread-safe. Needs a driver in this "
                    "process:\nRuntimeError with the reason if it has none, or refuses.")
      .def_static("record", record, "stream"_a, "device"_a,
                  "Return a point behind all work that a stream has been given so far.\n\n"
                  "Of a default stream (0, 1, 2) the context of the calling thread decides whose "
                  "it is; without\none it is the device's.")
      .def_static("borrow", borrow, "handle"_a, "device"_a,
                  "Return an event of the program, which must live until the last wait has ended.")
      .def("wait", wait, "deadline_ns"_a, "node"_a.none() = nb::none(),
           "Wait until the work before it has ended.\n\n"
           "Returns (code, errno, index, moved_bytes): OK, TIMEOUT, CLOSED when the node is, "
           "LOCAL_FAULT for\nan error of the GPU's memory, SYSTEM for another one.");
}
