// Detection of forks. A forked child inherits memory but no threads, so code that waits for a
// thread or owns shared state must know whether it was made in this process.
#pragma once

#include <cstdint>

namespace ldd {

// 0 in the process that loaded the library, plus one in each generation of forked children.
std::uint64_t fork_generation();

// Remembers the process in which it was constructed.
class ProcessMark {
 public:
  // True in a forked child of that process.
  [[nodiscard]] bool inherited() const { return generation_ != fork_generation(); }

 private:
  std::uint64_t generation_ = fork_generation();
};

}  // namespace ldd
