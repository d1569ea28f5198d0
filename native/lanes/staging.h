// Pinned memory between a lane and a GPU. Chunks are gathered into its slots before they are sent,
// and scattered from them after they were received, several at a time, while the lane moves others.
// Every call of the driver is made on a thread of its own (cuda/job.h), so that neither a driver
// nor a GPU that hangs holds up a thread that serves others.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "memory/entries.h"

namespace ldd {

inline constexpr std::size_t kStagingSlots = 4;
inline constexpr std::size_t kStagingSlotBytes = std::size_t{1} << 20;

enum class Staged { kGather, kScatter };  // from the GPU into a slot, or back

// The slots of one lane. The memory is allocated at first use, and freed when the object ends and
// no copy needs it any more. For one thread at a time, which must not wait for others.
class Staging {
 public:
  // `wake` is called, mostly on another thread, whenever something that was asked for has ended.
  // Unless `usable` is ok, take() returns it.
  explicit Staging(std::function<void()> wake, const Outcome& usable = {});
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Begins a transfer with memory of that GPU. What is left of the one before is abandoned. After
  // the deadline no copy begins any more.
  void begin(int device, std::int64_t deadline_ns);

  // A free slot, kept until release(). None: all are in use, or the memory is still being
  // allocated; `wake` will be called. kSystem if there is no memory, no driver or no thread.
  Outcome take(std::optional<std::size_t>& slot);
  [[nodiscard]] std::span<std::byte> bytes(std::size_t slot) const;
  // Copies between the begin of a slot and the ranges, one after the other. `uses` are held until
  // the copy has ended.
  void copy(std::size_t slot, Staged direction, std::vector<iovec> ranges, std::vector<Use> uses);
  // The outcome of the slot's copy; none while it runs.
  [[nodiscard]] std::optional<Outcome> ended(std::size_t slot) const;
  void release(std::size_t slot);

  // No further copy begins, until begin().
  void stop();
  [[nodiscard]] bool busy() const;  // whether a copy runs
  // Waits until none runs, at the latest until then.
  void drain(std::int64_t until_ns) const;

 private:
  struct Shared;
  class Copy;
  class Allocate;
  class Free;
  struct Transfer;

  std::shared_ptr<Shared> shared_;
  std::shared_ptr<Transfer> transfer_;
  Outcome usable_;
};

// How long the end of a lane waits for copies that run. After that it leaves them (cuda/job.h).
inline constexpr std::int64_t kDrainNs = 50'000'000;

}  // namespace ldd
