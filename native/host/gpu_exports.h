// Allocations of GPUs, and mappings of their virtual memory, that the instance lets peers on this
// host map: one row of the published page for each, as long as memory of it is registered.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/unique_fd.h"
#include "memory/node.h"

namespace ldd {

// Thread-safe. In a forked child every call throws std::logic_error.
class GpuExports {
 public:
  explicit GpuExports(std::shared_ptr<Node> node) : node_(std::move(node)) {}

  // Publishes what a range of a GPU's addresses consists of: one allocation, or mappings side by
  // side. Returns why that is not possible, or ""; a call that returned a reason must not be undone
  // by remove(). Memory that peers cannot map is published as such.
  std::string add(std::uint64_t address, std::uint64_t size);
  // Undoes one add() of that range.
  void remove(std::uint64_t address, std::uint64_t size);
  // Publishes again what has memory of a range that was replaced, also what could not be published
  // before. What cannot be published is gone for peers.
  void renew(std::uint64_t address, std::uint64_t size);

 private:
  struct Known {
    std::uint64_t end = 0;
    Ref row;
    UniqueFd descriptor;  // closed after the row has ended, so that peers notice another file
  };
  using Pieces = std::map<std::uint64_t, Known>;  // by first byte

  // The following need the lock.
  [[nodiscard]] Pieces::iterator find(std::uint64_t address);
  [[nodiscard]] std::string publish(std::uint64_t address, std::uint64_t size);
  [[nodiscard]] bool registered(std::uint64_t begin, std::uint64_t end) const;
  // Ends rows that share a byte with the range: all, or those of memory that is not registered.
  // Returns from where to where their memory is, and the range.
  Range withdraw(std::uint64_t address, std::uint64_t size, bool all);

  std::shared_ptr<Node> node_;
  std::mutex mutex_;
  Pieces known_;
  std::multimap<std::uint64_t, std::uint64_t> registered_;  // size by first byte
};

}  // namespace ldd
