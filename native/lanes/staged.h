// Both ends of a payload whose memory is a GPU's: chunks are sent from the slots of a lane's
// pinned memory, and received into them. See staging.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/outcome.h"
#include "lanes/cursor.h"
#include "lanes/staging.h"
#include "memory/entries.h"

namespace ldd {

// The conditions for moving bytes, checked before each system call or copy.
class BatchGuard {
 public:
  virtual ~BatchGuard() = default;
  // Adds the uses to hold meanwhile. Not ok: no byte may move any more.
  virtual Outcome take(std::vector<Use>& uses) = 0;
};

// Where the bytes of a payload are: in memory of the host, or of a GPU, then with the pinned memory
// through which they pass.
struct Place {
  Staging* staging = nullptr;  // null: the host
  int device = kHostMemory;
  std::int64_t deadline_ns = 0;  // after which no copy begins
};

enum class Step : std::uint8_t {
  kReady,
  kWait,    // for a copy or for memory; the staging's `wake` will be called
  kFailed,  // see failure(); no copy changes memory of the GPU any more
  kEnd,
};

// What gathering and scattering share: a position in the GPU's memory and the copies under way.
class StagedMemory {
 public:
  // `fault` is the code for memory that cannot be accessed.
  void start(const Place& place, const Cursor& from, Code fault);
  [[nodiscard]] bool active() const { return staging != nullptr; }
  [[nodiscard]] const Outcome& failure() const { return failure_; }

 protected:
  struct Part {
    std::size_t slot = 0;
    std::size_t bytes = 0;
  };

  // False, with a failure or because there is no slot now.
  bool take(std::size_t& slot);
  bool copy(const Part& part, Staged direction, BatchGuard& guard);
  void fail(const Outcome& why);
  // The check after the last copy, which decides whether the bytes count.
  bool confirm(BatchGuard& guard);

  Staging* staging = nullptr;
  Cursor cursor;
  // Whose copies were begun, in order: at most kStagingSlots. Unlike an empty deque, an empty
  // vector takes no memory, which each lane would keep.
  std::vector<Part> parts;

 private:
  Code fault_ = Code::kSystem;
  Outcome failure_;
};

class Gathering : public StagedMemory {
 public:
  // Begins as many copies as there are slots.
  void ahead(BatchGuard& guard);
  // kReady: `chunk` is the next one. kEnd: there is none.
  Step next(BatchGuard& guard, std::span<const std::byte>& chunk);
  void sent();  // the chunk
};

class Scattering : public StagedMemory {
 public:
  void begin(const Place& place, const Cursor& from, Code fault);
  // kReady: `room` is where to receive the next bytes.
  Step room(std::span<std::byte>& room);
  // So many bytes were received there.
  void received(std::size_t bytes, BatchGuard& guard);
  // After the last byte. kEnd: everything is in place.
  Step finish(BatchGuard& guard);

 private:
  void settle();  // forgets copies that have ended

  std::optional<Part> filling_;
};

}  // namespace ldd
