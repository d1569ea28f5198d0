#include "copy/copy_entries.h"

#include "base/clock.h"

namespace ldd {

CopyEntries::CopyEntries(const CopyChecks& checks)
    : node_(checks.node == nullptr ? nullptr : checks.node->shared_from_this()),
      checks_(checks),
      destination_(find(checks.destination)),
      source_(find(checks.source)) {}

std::shared_ptr<Entry> CopyEntries::find(Ref ref) const {
  return node_ != nullptr && ref.named() ? node_->entries().find(ref) : nullptr;
}

Outcome CopyEntries::take(Uses& uses, Holder holder) const {
  if (node_ != nullptr && node_->closed()) {
    return Outcome::failure(Code::kClosed);
  }
  if (now_ns() >= checks_.deadline_ns) {
    return Outcome::failure(Code::kTimeout);
  }
  uses = {{destination_, checks_.destination.value, holder},
          {source_, checks_.source.value, holder}};
  if (checks_.destination.named() && !uses.writing) {
    return Outcome::failure(Code::kLocalGone);
  }
  const bool gone = checks_.source.named() && !uses.reading;
  return gone ? Outcome::failure(Code::kGone) : Outcome{};
}

}  // namespace ldd
