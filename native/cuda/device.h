// One GPU of this process: its primary context, which all libraries of the process share, and the
// library's own streams on it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cuda/driver.h"
#include "cuda/kernels.h"

namespace ldd::cuda {

// The most chunks of copies in one stream at a time, and the most items of the list of a chunk.
inline constexpr std::size_t kMostInFlight = 4;
inline constexpr std::size_t kMostItems = 1536;

// A stream, an event for each chunk of copies that may be in flight, and pinned memory for their
// lists. It is used again by other threads, and never destroyed.
struct CopyStream {
  StreamHandle stream = nullptr;
  std::array<EventHandle, kMostInFlight> events{};
  CopyItem* lists = nullptr;  // kMostInFlight of them; null until the first kernel
};

// Makes a context current on the calling thread; the destructor restores what was current before.
class Current {
 public:
  Current(const Driver& driver, ContextHandle context)
      : driver_(driver), result_(driver.ctx_push_current(context)) {}
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    if (result_ == Result::kSuccess) {
      driver_.ctx_pop_current(nullptr);
    }
  }
  [[nodiscard]] Result result() const { return result_; }

 private:
  const Driver& driver_;
  Result result_;
};

class Device {
 public:
  // Retains the primary context of that GPU, for the life of the process. Null with a reason if the
  // driver refuses, or there is no such GPU.
  static Device* find(const Driver& driver, int ordinal, std::string& problem);
  Device(const Driver& driver, int ordinal, ContextHandle context, const Uuid& uuid)
      : driver_(driver), ordinal_(ordinal), context_(context), uuid_(uuid) {}

  [[nodiscard]] const Driver& driver() const { return driver_; }
  [[nodiscard]] int ordinal() const { return ordinal_; }
  [[nodiscard]] ContextHandle context() const { return context_; }
  // The same for this GPU in each process, whatever its ordinal there.
  [[nodiscard]] const Uuid& uuid() const { return uuid_; }
  // The library's kernels, which the first call loads; null if the driver refuses them. The
  // device's context must be current.
  const Kernels* kernels();
  // Why it has refused them, or "".
  [[nodiscard]] std::string kernels_problem();

 private:
  friend class StreamLease;

  const Driver& driver_;
  int ordinal_;
  ContextHandle context_;
  Uuid uuid_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<CopyStream>> idle_;
  std::unique_ptr<const Kernels> kernels_;  // once they are loaded, or refused
  std::string kernels_problem_;
};

// A stream of a device for one thread, which must give it back idle: it waits for its work before.
// Copies in it neither wait for the program's kernels, nor these for copies. The device's context
// must be current.
class StreamLease {
 public:
  explicit StreamLease(Device& device);
  StreamLease(const StreamLease&) = delete;
  StreamLease& operator=(const StreamLease&) = delete;
  ~StreamLease();

  // Not kSuccess: the driver made no stream.
  [[nodiscard]] Result result() const { return result_; }
  [[nodiscard]] StreamHandle stream() const { return leased_->stream; }
  [[nodiscard]] EventHandle event(std::size_t i) const { return leased_->events.at(i); }
  // The list of chunk `i`, kMostItems long; null if the driver has no pinned memory.
  CopyItem* list(std::size_t i);

 private:
  Device& device_;
  std::unique_ptr<CopyStream> leased_;
  Result result_ = Result::kSuccess;
};

// The ordinal of the GPU that has the memory at `address`; none for host memory, also for managed
// memory, which host threads can touch.
std::optional<int> device_of(const Driver& driver, Address address);

// Whether ranges lie within single allocations. Beyond the end of one a copy engine refuses, and a
// kernel ends the context, which is the program's as well. The context must be current.
class AllocationCheck {
 public:
  explicit AllocationCheck(const Driver& driver) : driver_(driver) {}
  bool contains(Address address, std::uint64_t size);

 private:
  [[nodiscard]] bool known(Address address, std::uint64_t size) const {
    return address >= begin_ && address - begin_ <= size_ && size <= size_ - (address - begin_);
  }

  const Driver& driver_;
  Address begin_ = 0;
  std::size_t size_ = 0;  // of the allocation that was found last
};

// The identities of the GPUs that this process sees, by ordinal.
std::vector<Uuid> identities(const Driver& driver);

// The GPU of this process that has that identity, or none.
std::optional<int> ordinal_of(const Driver& driver, const Uuid& uuid);

}  // namespace ldd::cuda
