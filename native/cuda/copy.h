// Copies from, to and between GPUs, in streams of the library: by its own kernel, or by the GPU's
// copy engines.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/copy_way.h"
#include "base/outcome.h"
#include "cuda/device.h"

namespace ldd::cuda {

// What a result of the driver means for a transfer: kLocalFault for memory at fault (an
// uncorrectable error, an address that the GPU cannot reach), else kSystem with EIO.
Outcome outcome_of(Result result);

// Asks the driver again and again, so that it never holds the thread, until a question has another
// answer than kNotReady. `go_on` is asked meanwhile; when it returns false the wait ends with
// kNotReady.
Result poll(const std::function<Result()>& question, const std::function<bool()>& go_on = {});

// Where one side of the copies of a chunk lies.
enum class Side {
  kElsewhere,  // in pageable memory, or another GPU's
  kOnGpu,      // in memory of the GPU that copies
  kPinned,     // in pinned memory of the library
};

// Limits of a chunk.
inline constexpr std::uint64_t kChunkBytes = std::uint64_t{16} << 20;
inline constexpr std::size_t kChunkPieces = 1024;

// With CopyWay::kAuto a kernel copies chunks whose pieces are shorter than this on average: a copy
// engine spends some microseconds on each piece, however short.
inline constexpr std::uint64_t kKernelBelowBytes = std::uint64_t{1} << 20;

// Pairs of equally long ranges that are copied in any order: destinations overlap nothing.
struct Chunk {
  const iovec* to = nullptr;
  const iovec* from = nullptr;
  std::size_t count = 0;
  Side to_side = Side::kElsewhere;
  Side from_side = Side::kElsewhere;
};

// Chunks of copies in one stream of a GPU, kMostInFlight of them at a time. For one thread; the
// device's context must be current.
class StreamCopies {
 public:
  // `most_in_flight`: from 1 to kMostInFlight.
  StreamCopies(Device& device, CopyWay way, std::size_t most_in_flight = kMostInFlight);
  StreamCopies(const StreamCopies&) = delete;
  StreamCopies& operator=(const StreamCopies&) = delete;
  ~StreamCopies() { finish(); }

  [[nodiscard]] const Driver& driver() const { return driver_; }
  // Waits until fewer chunks are in flight than may be. A GPU may hang meanwhile, so that whether
  // to go on is checked after this.
  Result make_room();
  // Makes room, then submits a chunk. `held` is kept until its copies have ended. After a failure,
  // which stays, no copy is in flight.
  Result begin(const Chunk& chunk, std::shared_ptr<const void> held = nullptr);
  // Waits until no copy is in flight; returns the first failure.
  Result finish();

 private:
  struct Slot {
    bool in_flight = false;
    std::shared_ptr<const void> held;
  };

  [[nodiscard]] Result end_oldest(std::size_t slot);
  void fail(Result result);
  [[nodiscard]] Result submit(const Chunk& chunk, std::size_t slot);
  // The length of the list, 0 if the engines must copy the chunk.
  [[nodiscard]] std::uint32_t fill_list(const Chunk& chunk, CopyItem* list) const;
  [[nodiscard]] bool kernel_suits(const Chunk& chunk) const;
  [[nodiscard]] Result submit_to_engines(const Chunk& chunk);

  Device& device_;
  const Driver& driver_;
  CopyWay way_;
  std::size_t most_in_flight_;
  StreamLease lease_;
  Result failure_;
  std::size_t next_ = 0;
  std::array<Slot, kMostInFlight> slots_;
};

// Copies `count` pairs of equally long ranges through the GPU `device`, by its engines unless both
// sides are said to be where a kernel reaches them. When it returns, the bytes are in place or,
// after a failure, no copy is in progress. kSystem with ENODEV when there is no such GPU. Callable
// from any thread, whose current context it does not change.
Outcome copy_pairs(int device, const iovec* destination, const iovec* source, std::size_t count,
                   Side to_side = Side::kElsewhere, Side from_side = Side::kElsewhere);

}  // namespace ldd::cuda
