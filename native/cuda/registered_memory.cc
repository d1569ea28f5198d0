#include "cuda/registered_memory.h"

#include <optional>

#include "cuda/device.h"

namespace ldd::cuda {

namespace {

// The driver, with a GPU's context current until the object ends.
class InContext {
 public:
  explicit InContext(int ordinal) {
    const Loaded loaded = present_driver();
    problem_ = loaded.problem;
    const Device* const device =
        loaded.driver == nullptr ? nullptr : Device::find(*loaded.driver, ordinal, problem_);
    if (device != nullptr) {
      driver_ = loaded.driver;
      current_.emplace(*driver_, device->context());
    }
  }
  // Null: problem() says why.
  [[nodiscard]] const Driver* driver() const { return driver_; }
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  const Driver* driver_ = nullptr;
  std::string problem_;
  std::optional<Current> current_;
};

}  // namespace

std::string pin_memory(int ordinal, Address address, std::size_t size) {
  const InContext context(ordinal);
  if (context.driver() == nullptr) {
    return context.problem();
  }
  const Result result =
      context.driver()->mem_host_register(reinterpret_cast<void*>(address), size, kPortable);
  return result == Result::kSuccess ? "" : describe(*context.driver(), "cuMemHostRegister", result);
}

void unpin_memory(int ordinal, Address address) {
  const InContext context(ordinal);
  if (context.driver() != nullptr) {
    context.driver()->mem_host_unregister(reinterpret_cast<void*>(address));
  }
}

std::pair<std::size_t, std::size_t> memory_of(int ordinal) {
  const InContext context(ordinal);
  std::size_t free = 0;
  std::size_t total = 0;
  if (context.driver() != nullptr) {
    context.driver()->mem_get_info(&free, &total);
  }
  return {free, total};
}

}  // namespace ldd::cuda
