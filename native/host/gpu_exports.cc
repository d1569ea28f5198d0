#include "host/gpu_exports.h"

#include <iterator>
#include <optional>
#include <stdexcept>

#include "cuda/sharing.h"

namespace ldd {

namespace {

std::optional<Export> make_export(std::uint64_t address, std::string& problem) {
  const cuda::Loaded loaded = cuda::present_driver();
  problem = loaded.problem;
  const auto made = loaded.driver == nullptr
                        ? std::nullopt
                        : cuda::export_allocation(*loaded.driver, address, problem);
  if (!made) {
    return std::nullopt;
  }
  return Export{{made->begin, made->begin + made->size}, made->gpu.bytes, made->handle.bytes};
}

}  // namespace

std::map<std::uint64_t, GpuExports::Known>::iterator GpuExports::find(std::uint64_t address) {
  auto after = known_.upper_bound(address);
  if (after == known_.begin()) {
    return known_.end();
  }
  --after;
  return address < after->second.end ? after : known_.end();
}

std::string GpuExports::add(std::uint64_t address) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  if (const auto found = find(address); found != known_.end()) {
    ++found->second.count;
    return "";
  }
  std::string problem;
  const std::optional<Export> made = make_export(address, problem);
  if (!made) {
    return problem;
  }
  try {
    const Ref row = node_->published().open_export(*made);
    known_[made->range.begin] = {made->range.end, 1, row};
  } catch (const std::length_error& full) {
    return full.what();
  }
  return "";
}

void GpuExports::remove(std::uint64_t address) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  const auto found = find(address);
  if (found != known_.end() && --found->second.count == 0) {
    node_->published().close_export(found->second.row);
    known_.erase(found);
  }
}

void GpuExports::renew(std::uint64_t address, std::uint64_t size) {
  node_->published().require_owner();  // before the lock, which a thread of the parent may hold
  const std::lock_guard lock(mutex_);
  for (auto& [begin, known] : known_) {
    if (begin >= address + size || known.end <= address) {
      continue;
    }
    node_->published().close_export(known.row);
    std::string problem;
    const std::optional<Export> made = make_export(begin, problem);
    known.row = made ? node_->published().open_export(*made) : Ref{};
  }
}

}  // namespace ldd
