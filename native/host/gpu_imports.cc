#include "host/gpu_imports.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "cuda/job.h"

namespace ldd {

namespace {

using Mappings = std::vector<std::shared_ptr<const GpuMapping>>;

constexpr std::int64_t kToCloseNs = 500'000'000;
constexpr auto kPause = std::chrono::microseconds(100);

// Waits for reads that use the mappings, then unmaps them. A job, as either may never end.
class Closing final : public cuda::Job {
 public:
  explicit Closing(Mappings mappings) : mappings_(std::move(mappings)) {}
  Outcome run() override {
    const auto used = [](const auto& each) { return each.use_count() > 1; };
    while (!stopping() && std::any_of(mappings_.begin(), mappings_.end(), used)) {
      std::this_thread::sleep_for(kPause);
    }
    mappings_.clear();
    return {};
  }

 private:
  Mappings mappings_;
};

void close_all(Mappings mappings) {
  if (!mappings.empty()) {
    [[maybe_unused]] const Outcome outcome = cuda::run_job(
        std::make_shared<Closing>(std::move(mappings)), now_ns() + kToCloseNs, nullptr);
  }
}

}  // namespace

std::shared_ptr<const GpuMapping> GpuImports::known(const PublishedView& view,
                                                    std::uint64_t address, std::uint64_t length) {
  Mappings ended;  // unmapped after the lock is released
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const GpuMapping> found;
  std::erase_if(mappings_, [&](const auto& each) {
    if (!view.export_live(each->row)) {
      ended.push_back(each);
      return true;
    }
    found = each->contains(address, length) ? each : found;
    return false;
  });
  return found;
}

std::shared_ptr<const GpuMapping> GpuImports::find(const PublishedView& view, Ref cache,
                                                   std::uint64_t address, std::uint64_t length,
                                                   bool in_process) {
  if (auto found = known(view, address, length); found != nullptr) {
    return found;
  }
  // Without the lock: a driver may not return.
  std::string problem;
  auto made = open(view, address, length, in_process, problem);
  Mappings ended;  // unmapped after the lock is released
  const std::lock_guard lock(mutex_);
  if (made == nullptr) {
    problem_ = problem;
    return nullptr;
  }
  // One for each row: another thread may have mapped it meanwhile, and a row may change although
  // its word does not say so.
  const auto same = std::find_if(mappings_.begin(), mappings_.end(), [&](const auto& each) {
    return each->row.index == made->row.index;
  });
  const bool kept = same != mappings_.end() && (*same)->row.value == made->row.value &&
                    (*same)->contains(address, length);
  if (kept) {
    ended.push_back(std::exchange(made, *same));
    return made;
  }
  if (same != mappings_.end()) {
    ended.push_back(std::move(*same));
    mappings_.erase(same);
  }
  // The owner kills the guard before it has the mappings of the entry forgotten. So if it is live
  // now, forget() comes later.
  if (!closed_ && view.live(cache)) {
    mappings_.push_back(made);
  }
  return made;
}

std::shared_ptr<const GpuMapping> GpuImports::open(const PublishedView& view, std::uint64_t address,
                                                   std::uint64_t length, bool in_process,
                                                   std::string& problem) {
  const auto listed = view.find_export(address, length);
  if (!listed) {
    problem = "the range is not within one allocation that the peer exports";
    return nullptr;
  }
  const auto& [exported, row] = *listed;
  if (!in_process && exported.handle == decltype(exported.handle){}) {
    problem =
        "the peer's driver makes no handle of that memory: it has none for virtual memory, and a "
        "container must share the host's IPC namespace";
    return nullptr;
  }
  GpuMapping made{exported.range, row, nullptr, exported.range.begin, 0};
  const cuda::Loaded loaded = cuda::present_driver();
  if (loaded.driver == nullptr) {
    problem = loaded.problem;
    return nullptr;
  }
  const cuda::Uuid gpu{exported.gpu};
  if (in_process) {  // a process cannot open its own handles, and need not
    made.device = cuda::ordinal_of(*loaded.driver, gpu).value_or(0);
    return std::make_shared<const GpuMapping>(std::move(made));
  }
  made.mapping = cuda::Mapping::open(*loaded.driver, gpu, {exported.handle},
                                     exported.range.end - exported.range.begin, problem);
  if (made.mapping == nullptr) {
    return nullptr;
  }
  made.local_begin = made.mapping->address();
  made.device = made.mapping->device();
  return std::make_shared<const GpuMapping>(std::move(made));
}

void GpuImports::forget(std::uint64_t address, std::uint64_t size) {
  Mappings ended;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(mappings_, [&](const auto& each) {
      const bool touched = each->range.begin < address + size && address < each->range.end;
      if (touched) {
        ended.push_back(each);
      }
      return touched;
    });
  }
  close_all(std::move(ended));
}

void GpuImports::clear() {
  Mappings ended;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    ended.swap(mappings_);
  }
  close_all(std::move(ended));
}

std::string GpuImports::problem() {
  const std::lock_guard lock(mutex_);
  return problem_;
}

std::size_t GpuImports::count() {
  const std::lock_guard lock(mutex_);
  return mappings_.size();
}

}  // namespace ldd
