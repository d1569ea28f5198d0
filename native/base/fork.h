// Which process this is. A forked child inherits memory but no threads, so whatever waits for a
// thread or owns shared state has to know whether it was made in this process.
#pragma once

#include <cstdint>

namespace ldd {

// 0 in the process that loaded the library, one more in each generation of forked children.
std::uint64_t fork_generation();

// Remembers the process in which it was made.
class ProcessMark {
 public:
  // True in a forked child of the process that made this.
  [[nodiscard]] bool inherited() const { return generation_ != fork_generation(); }

 private:
  std::uint64_t generation_ = fork_generation();
};

}  // namespace ldd
