// The one nanobind module. bind_<subject>.cc files bind one subject each.
#include <nanobind/nanobind.h>

#include <exception>
#include <system_error>

namespace nb = nanobind;

void bind_memory(nb::module_& module);      // Node, Segment
void bind_copy(nb::module_& module);        // copy, threads
void bind_cuda(nb::module_& module);        // GPUs
void bind_gpu_event(nb::module_& module);   // GPUs
void bind_gpu_memory(nb::module_& module);  // their pools, pinned memory
void bind_host(nb::module_& module);        // HostPeer
void bind_lanes(nb::module_& module);       // Lanes, serving
void bind_cancellation(nb::module_& module);

namespace {

// A failed system call becomes OSError with errno; Python chooses the subclass (PermissionError,
// ...).
void translate_system_error(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const std::system_error& refused) {
    const nb::object arguments = nb::make_tuple(refused.code().value(), refused.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

// Whether the interpreter has the module already: the package may be imported again after it was
// removed from sys.modules, or from a copy of its files. The new module then receives the first
// one's contents, as a C++ class can be bound only once. The first one is kept until the
// interpreter ends, as long as instances of its types may exist.
bool adopt_first(nb::module_& module) {
  const nb::dict kept = nb::borrow<nb::dict>(PyInterpreterState_GetDict(PyInterpreterState_Get()));
  const nb::str key("llm_datadist._native");
  if (!kept.contains(key)) {
    kept[key] = module;
    return false;
  }
  const nb::dict first = nb::borrow<nb::dict>(kept[key].attr("__dict__"));
  for (const auto& [name, value] : first) {
    if (!nb::hasattr(module, name)) {
      nb::setattr(module, name, value);
    }
  }
  return true;
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Native core of llm_datadist: moves bytes and serves peers with native threads.";
  if (adopt_first(module)) {
    return;
  }
  // Objects that daemon threads or a forked child hold at exit are expected; do not report them.
  nb::set_leak_warnings(false);
  nb::register_exception_translator(translate_system_error);
  bind_memory(module);
  bind_copy(module);
  bind_cuda(module);
  bind_gpu_event(module);
  bind_gpu_memory(module);
  bind_host(module);
  bind_lanes(module);
  bind_cancellation(module);
}
