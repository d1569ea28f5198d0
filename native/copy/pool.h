// The process-wide copy workers. A call runs the batches of one operation on the calling thread and
// on idle workers; an operation of one batch runs on the calling thread only.
#pragma once

#include <cstddef>
#include <functional>

#include "base/outcome.h"

namespace ldd {

// `run_batch(i)` is called once for each i in [0, count), in ascending order but from several
// threads at once, until a call fails. run() returns after the last call has returned, with the
// failure of the lowest batch or the sum of moved_bytes. run_batch must not throw. Concurrent
// operations share the workers batch by batch.
class CopyPool {
 public:
  static CopyPool& instance();  // workers start at first use; a forked child starts its own

  Outcome run(std::size_t count, const std::function<Outcome(std::size_t)>& run_batch);
  // Number of threads of one operation, the caller's included; 0 = from the cores available.
  void set_threads(std::size_t count);
  [[nodiscard]] std::size_t threads() const;

  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;

 private:
  CopyPool() = default;
  ~CopyPool() = default;
};

}  // namespace ldd
