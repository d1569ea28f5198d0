#include "host/gpu_imports.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "cuda/job.h"
#include "host/remote_descriptor.h"

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

std::shared_ptr<cuda::Mapping> map_descriptor(const cuda::Driver& driver, const PublishedView& view,
                                              const GpuOwner& owner,
                                              const std::pair<Export, Ref>& listed,
                                              Outcome& outcome, std::string& problem) {
  const auto& [exported, row] = listed;
  int number = -1;
  std::memcpy(&number, exported.handle.data(), sizeof number);
  UniqueFd descriptor;
  const Outcome taken = take_descriptor(owner.pid, number, owner.prove, descriptor, problem);
  if (!taken.ok()) {
    outcome = taken;
    return nullptr;
  }
  // The owner ends the row before it closes the descriptor, whose number may then be another
  // file's.
  if (!view.export_live(row)) {
    outcome = Outcome::failure(Code::kGone);
    return nullptr;
  }
  return cuda::Mapping::open(driver, cuda::Uuid{exported.gpu}, descriptor.get(),
                             exported.range.end - exported.range.begin, problem);
}

// Maps what another process has published. Null with a reason.
std::shared_ptr<cuda::Mapping> map(const cuda::Driver& driver, const PublishedView& view,
                                   const GpuOwner& owner, const std::pair<Export, Ref>& listed,
                                   Outcome& outcome, std::string& problem) {
  const Export& exported = listed.first;
  switch (static_cast<cuda::Sharing>(exported.sharing)) {
    case cuda::Sharing::kIpc:
      return cuda::Mapping::open(driver, cuda::Uuid{exported.gpu}, {exported.handle},
                                 exported.range.end - exported.range.begin, problem);
    case cuda::Sharing::kDescriptor:
      return map_descriptor(driver, view, owner, listed, outcome, problem);
    case cuda::Sharing::kUnshareable:
      problem =
          "the peer's memory was made so that no other process can map it: with PyTorch set "
          "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False,backend:native, or "
          "TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC=1; with cuMemCreate ask for descriptors as handles";
      return nullptr;
    default:
      problem =
          "the peer's driver makes no handle of that memory: a container must share the host's IPC "
          "namespace";
      return nullptr;
  }
}

}  // namespace

std::shared_ptr<const GpuMapping> GpuImports::known(const PublishedView& view,
                                                    std::uint64_t address) {
  Mappings ended;  // unmapped after the lock is released
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const GpuMapping> found;
  std::erase_if(mappings_, [&](const auto& each) {
    if (!view.export_live(each->row)) {
      ended.push_back(each);
      return true;
    }
    found = each->contains(address, 1) ? each : found;
    return false;
  });
  return found;
}

std::shared_ptr<const GpuMapping> GpuImports::find(const PublishedView& view, const GpuOwner& owner,
                                                   Ref cache, std::uint64_t address,
                                                   Outcome& outcome) {
  if (auto found = known(view, address); found != nullptr) {
    return found;
  }
  // Without the lock: a driver may not return.
  std::string problem;
  outcome = Outcome::failure(Code::kSystem, EOPNOTSUPP);
  auto made = open(view, owner, address, outcome, problem);
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
                    (*same)->contains(address, 1);
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

std::shared_ptr<const GpuMapping> GpuImports::open(const PublishedView& view, const GpuOwner& owner,
                                                   std::uint64_t address, Outcome& outcome,
                                                   std::string& problem) {
  const auto listed = view.find_export(address, 1);
  if (!listed) {
    problem = "the peer exports no such memory";
    return nullptr;
  }
  const auto& [exported, row] = *listed;
  const cuda::Loaded loaded = cuda::present_driver();
  if (loaded.driver == nullptr) {
    problem = loaded.problem;
    return nullptr;
  }
  GpuMapping made{exported.range, row, nullptr, exported.range.begin, 0};
  if (owner.in_process) {  // a process cannot open its own handles, and need not
    made.device = cuda::ordinal_of(*loaded.driver, cuda::Uuid{exported.gpu}).value_or(0);
    return std::make_shared<const GpuMapping>(std::move(made));
  }
  made.mapping = map(*loaded.driver, view, owner, *listed, outcome, problem);
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
