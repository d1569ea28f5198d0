// Cancellation of the blocking calls of a thread.
#include <nanobind/nanobind.h>

#include "bind/cancellation.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

void bind_cancellation(nb::module_& module);
void bind_cancellation(nb::module_& module) {
  nb::class_<Cancellation>(module, "Cancellation",
                           "Ends blocking calls of one thread from another. cancel() and canceled "
                           "are thread-safe.")
      .def(nb::init<nb::object>(), "raised"_a,
           "raised is the type of the exception that ends a call.")
      .def("cancel", &Cancellation::cancel,
           "End the call that runs under it, within 100 ms where the call can end, and all later\n"
           "ones. When the call has raised, it writes nothing any more.")
      .def_prop_ro("canceled", &Cancellation::canceled, "Whether cancel() was called.")
      .def("enter", &Cancellation::enter, "Have the calls of this thread run under it.")
      .def("exit", [](Cancellation&) { Cancellation::exit(); }, "End what enter() began.");
  module.def(
      "check_canceled",
      [] {
        const Cancellation* current = Cancellation::current();
        if (current != nullptr && current->canceled()) {
          current->raise();
          throw nb::python_error();
        }
      },
      "Raise if the calls of this thread are canceled.");
}
