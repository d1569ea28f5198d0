// Allocations of GPUs that the instance lets peers on this host map: one row of the published page
// for each, as long as memory of it is registered.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "memory/node.h"

namespace ldd {

// Thread-safe. In a forked child every call throws std::logic_error.
class GpuExports {
 public:
  explicit GpuExports(std::shared_ptr<Node> node) : node_(std::move(node)) {}

  // Publishes the allocation that has a GPU's address, or counts it once more. Returns why peers
  // cannot map it, or ""; a call that returned a reason must not be undone by remove().
  std::string add(std::uint64_t address);
  // Undoes one add() of that address.
  void remove(std::uint64_t address);
  // Makes new handles for the allocations in a range whose memory was replaced.
  void renew(std::uint64_t address, std::uint64_t size);

 private:
  struct Known {
    std::uint64_t end = 0;
    std::uint64_t count = 0;
    Ref row;  // unnamed: the last renewal has failed
  };

  [[nodiscard]] std::map<std::uint64_t, Known>::iterator find(std::uint64_t address);

  std::shared_ptr<Node> node_;
  std::mutex mutex_;
  std::map<std::uint64_t, Known> known_;  // by first byte
};

}  // namespace ldd
