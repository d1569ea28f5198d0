// Reads of scattered pieces that the target gathers in its own memory (GATHER), from where this
// process reads them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "copy/descriptors.h"
#include "lanes/initiator/driver.h"
#include "lanes/initiator/operations.h"

namespace ldd {

// The requests of one such read. Each lane has one request at a time, whose bytes are read before
// the next one, which overwrites them, is sent.
class GatherRequests final : public RequestSource {
 public:
  // Everything is borrowed. No piece may be longer than wire::kMaxGatherBytes.
  GatherRequests(const Descriptors& work, const LaneChecks& checks, const GatheredRead& read,
                 BatchGuard& no_guard);

  std::unique_ptr<Exchange> next(ClientLane& lane) override;
  Outcome answered(ClientLane& lane) override;
  [[nodiscard]] std::size_t count() const { return runs_.size(); }

 private:
  // A request that is under way, and the word that its answer arrives in.
  struct Asked {
    Run run;
    std::uint64_t address = 0;
    std::uint64_t answer_address = 0;  // of `address`, for a cursor
    std::uint64_t answer_bytes = sizeof(std::uint64_t);
  };

  [[nodiscard]] Outcome fetch(const Run& run, std::uint64_t from) const;

  const Descriptors& work_;
  const LaneChecks& checks_;
  const GatheredRead& read_;
  BatchGuard& no_guard_;
  std::mutex mutex_;  // guards what follows
  std::vector<Run> runs_;
  std::size_t next_ = 0;
  std::unordered_map<const ClientLane*, Asked> asked_;
};

}  // namespace ldd
