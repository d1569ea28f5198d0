#include "lanes/staging.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/fork.h"
#include "cuda/copy.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/job.h"

namespace ldd {

namespace {

enum class State : std::uint8_t { kFree, kTaken, kCopying, kEnded };

struct Slot {
  State state = State::kFree;
  bool abandoned = false;  // becomes free when its copy ends
  Outcome outcome;
};

// The driver with the context of a GPU current.
class Context {
 public:
  explicit Context(int device) {
    const cuda::Loaded loaded = cuda::present_driver();
    std::string problem;
    const cuda::Device* const found =
        loaded.driver == nullptr ? nullptr : cuda::Device::find(*loaded.driver, device, problem);
    if (found != nullptr) {
      current_.emplace(*loaded.driver, found->context());
      driver_ = current_->result() == cuda::Result::kSuccess ? loaded.driver : nullptr;
      failure_ = cuda::outcome_of(current_->result());
    }
  }
  [[nodiscard]] const cuda::Driver* driver() const { return driver_; }  // null: `failure`
  [[nodiscard]] const Outcome& failure() const { return failure_; }

 private:
  std::optional<cuda::Current> current_;
  const cuda::Driver* driver_ = nullptr;
  Outcome failure_ = Outcome::failure(Code::kSystem, ENODEV);
};

}  // namespace

// What jobs use; it lasts as long as the last of them.
struct Staging::Shared {
  explicit Shared(std::function<void()> its_wake) : wake(std::move(its_wake)) {}
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared();

  std::mutex mutex;
  std::condition_variable changed;
  std::function<void()> wake;
  std::array<Slot, kStagingSlots> slots;
  std::size_t running = 0;  // copies
  std::byte* memory = nullptr;
  int device = kHostMemory;  // whose context was current when the memory was allocated
  bool allocating = false;
  Outcome allocated;
  ProcessMark mark;
};

struct Staging::Transfer {
  int device = kHostMemory;
  std::int64_t deadline_ns = 0;
  std::atomic<bool> stopped{false};
};

class Staging::Allocate final : public cuda::Job {
 public:
  Allocate(std::shared_ptr<Shared> shared, int device)
      : shared_(std::move(shared)), device_(device) {}

  Outcome run() override {
    void* memory = nullptr;
    Outcome outcome = allocate(memory);
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->allocating = false;
      shared_->allocated = outcome;
      shared_->memory = static_cast<std::byte*>(memory);
      shared_->device = device_;
    }
    shared_->wake();
    return outcome;
  }

 private:
  Outcome allocate(void*& memory) const {
    const Context context(device_);
    if (context.driver() == nullptr) {
      return context.failure();
    }
    const cuda::Result result = context.driver()->mem_host_alloc(
        &memory, kStagingSlots * kStagingSlotBytes, cuda::kPortable);
    if (result != cuda::Result::kSuccess) {
      memory = nullptr;
      return result == cuda::Result::kOutOfMemory ? Outcome::failure(Code::kSystem, ENOMEM)
                                                  : cuda::outcome_of(result);
    }
    return {};
  }

  std::shared_ptr<Shared> shared_;
  int device_;
};

class Staging::Free final : public cuda::Job {
 public:
  Free(std::byte* memory, int device) : memory_(memory), device_(device) {}

  Outcome run() override {
    const Context context(device_);
    if (context.driver() != nullptr) {
      context.driver()->mem_free_host(memory_);
    }
    return {};
  }

 private:
  std::byte* memory_;
  int device_;
};

class Staging::Copy final : public cuda::Job {
 public:
  Copy(std::shared_ptr<Shared> shared, std::shared_ptr<const Transfer> transfer, std::size_t slot,
       Staged direction, std::vector<iovec> ranges, std::vector<Use> uses)
      : shared_(std::move(shared)),
        transfer_(std::move(transfer)),
        slot_(slot),
        direction_(direction),
        ranges_(std::move(ranges)),
        uses_(std::move(uses)) {}

  Outcome run() override {
    Outcome outcome;
    try {
      outcome = copy();
    } catch (const std::bad_alloc&) {
      outcome = Outcome::failure(Code::kSystem, ENOMEM);
    }
    end(outcome);
    return outcome;
  }

  // Tells how it ended. The memory of the GPU is not accessed any more.
  void end(const Outcome& outcome) {
    uses_.clear();
    {
      const std::lock_guard lock(shared_->mutex);
      Slot& slot = shared_->slots[slot_];
      slot.outcome = outcome;
      slot.state = slot.abandoned ? State::kFree : State::kEnded;
      slot.abandoned = false;
      --shared_->running;
      shared_->changed.notify_all();
    }
    shared_->wake();
  }

 private:
  Outcome copy() const {
    std::vector<iovec> parts;
    parts.reserve(ranges_.size());
    std::byte* at = shared_->memory + slot_ * kStagingSlotBytes;
    for (const iovec& range : ranges_) {
      parts.push_back({at, range.iov_len});
      at += range.iov_len;
    }
    // Right before the copy: a process that is stopped before copies when it continues.
    if (transfer_->stopped.load() || now_ns() >= transfer_->deadline_ns) {
      return Outcome::failure(Code::kTimeout);
    }
    const bool gather = direction_ == Staged::kGather;
    const std::vector<iovec>& to = gather ? parts : ranges_;
    const std::vector<iovec>& from = gather ? ranges_ : parts;
    return cuda::copy_pairs(transfer_->device, to.data(), from.data(), to.size());
  }

  std::shared_ptr<Shared> shared_;
  std::shared_ptr<const Transfer> transfer_;
  std::size_t slot_;
  Staged direction_;
  std::vector<iovec> ranges_;
  std::vector<Use> uses_;
};

Staging::Shared::~Shared() {
  if (memory != nullptr && !mark.inherited()) {  // without a thread for it the memory is lost
    cuda::start_job(std::make_shared<Free>(memory, device));
  }
}

Staging::Staging(std::function<void()> wake, const Outcome& usable)
    : shared_(std::make_shared<Shared>(std::move(wake))),
      transfer_(std::make_shared<Transfer>()),
      usable_(usable) {}

Staging::~Staging() { stop(); }

void Staging::begin(int device, std::int64_t deadline_ns) {
  stop();
  transfer_ = std::make_shared<Transfer>();
  transfer_->device = device;
  transfer_->deadline_ns = deadline_ns;
  const std::lock_guard lock(shared_->mutex);
  for (Slot& slot : shared_->slots) {
    slot.abandoned = slot.state == State::kCopying;
    slot.state = slot.abandoned ? State::kCopying : State::kFree;
  }
  if (!shared_->allocating) {
    shared_->allocated = {};  // a failed allocation is tried again
  }
}

Outcome Staging::take(std::optional<std::size_t>& found) {
  found.reset();
  if (!usable_.ok()) {
    return usable_;
  }
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->memory != nullptr) {
      for (std::size_t i = 0; !found && i < kStagingSlots; ++i) {
        if (shared_->slots[i].state == State::kFree) {
          shared_->slots[i].state = State::kTaken;
          found = i;
        }
      }
      return {};
    }
    if (shared_->allocating || !shared_->allocated.ok()) {
      return shared_->allocating ? Outcome{} : shared_->allocated;
    }
    shared_->allocating = true;
  }
  if (!cuda::start_job(std::make_shared<Allocate>(shared_, transfer_->device))) {
    const std::lock_guard lock(shared_->mutex);
    shared_->allocating = false;
    return Outcome::failure(Code::kSystem, EUSERS);
  }
  return {};
}

std::span<std::byte> Staging::bytes(std::size_t slot) const {
  return {shared_->memory + slot * kStagingSlotBytes, kStagingSlotBytes};
}

void Staging::copy(std::size_t slot, Staged direction, std::vector<iovec> ranges,
                   std::vector<Use> uses) {
  const auto job = std::make_shared<Copy>(shared_, transfer_, slot, direction, std::move(ranges),
                                          std::move(uses));
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->slots[slot].state = State::kCopying;
    ++shared_->running;
  }
  if (!cuda::start_job(job)) {
    job->end(Outcome::failure(Code::kSystem, EUSERS));
  }
}

std::optional<Outcome> Staging::ended(std::size_t slot) const {
  const std::lock_guard lock(shared_->mutex);
  const Slot& found = shared_->slots[slot];
  return found.state == State::kEnded ? std::optional(found.outcome) : std::nullopt;
}

void Staging::release(std::size_t slot) {
  const std::lock_guard lock(shared_->mutex);
  shared_->slots[slot].state = State::kFree;
}

void Staging::stop() { transfer_->stopped.store(true); }

bool Staging::busy() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->running != 0;
}

void Staging::drain(std::int64_t until_ns) const {
  using Moment = std::chrono::steady_clock::time_point;
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait_until(lock, Moment{std::chrono::nanoseconds(until_ns)},
                              [this] { return shared_->running == 0; });
}

}  // namespace ldd
