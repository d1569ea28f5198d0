// The one nanobind module. bind_<subject>.cc files bind one subject each.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_memory(nb::module_& module);  // Node, Segment
void bind_copy(nb::module_& module);    // copy, threads
void bind_host(nb::module_& module);    // HostPeer
void bind_lanes(nb::module_& module);   // Lanes, serving

NB_MODULE(_native, module) {
  module.doc() = "Native core of llm_datadist: bytes moving and threads serving peers. No policy.";
  bind_memory(module);
  bind_copy(module);
  bind_host(module);
  bind_lanes(module);
}
