#include "base/interrupt.h"

#include <algorithm>

#include "base/clock.h"

namespace ldd {

namespace {

constexpr std::int64_t kPeriodNs = 50'000'000;

thread_local Interruptible* current = nullptr;

}  // namespace

Interruptible::Interruptible(Question question)
    : question_(question), outer_(current), next_ns_(now_ns() + kPeriodNs) {
  current = this;
}

Interruptible::~Interruptible() { current = outer_; }

bool Interruptible::active() { return current != nullptr && current->asks_; }

std::int64_t Interruptible::wake_ns(std::int64_t deadline_ns) {
  return active() ? std::min(deadline_ns, current->next_ns_) : deadline_ns;
}

bool Interruptible::due(bool signaled) {
  return active() && (signaled || now_ns() >= current->next_ns_);
}

bool Interruptible::ask() {
  Interruptible* const call = current;
  if (call == nullptr || !call->asks_) {
    return false;
  }
  const Answer answer = call->question_();
  call->ended_ = answer == Answer::kEnd;
  call->asks_ = answer == Answer::kGoOn;
  call->next_ns_ = now_ns() + kPeriodNs;
  return call->ended_;
}

}  // namespace ldd
