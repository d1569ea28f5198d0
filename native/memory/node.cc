#include "memory/node.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <system_error>
#include <utility>

namespace ldd {

namespace {

Proof random_proof() {
  std::random_device source;
  std::array<unsigned, sizeof(Proof) / sizeof(unsigned)> words{};
  std::generate(words.begin(), words.end(), [&] { return source(); });
  Proof proof{};
  std::memcpy(proof.data(), words.data(), proof.size());
  return proof;
}

}  // namespace

Node::Node(std::uint64_t incarnation, std::uint64_t guard_capacity, std::uint64_t log_capacity)
    : incarnation_(incarnation),
      published_(incarnation, guard_capacity, log_capacity),
      entries_(published_),
      self_(published_.open_guard()),
      own_proof_(random_proof()),
      consumed_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!consumed_event_.valid()) {
    throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  published_.show_proof(self_, own_proof_);
}

void Node::close() {
  if (!closed_.exchange(true)) {
    published_.kill_guard(self_);
    entries_.end();
  }
}

Ref Node::open_guard() {
  published_.require_owner();
  const std::lock_guard lock(guards_mutex_);
  const Ref guard = published_.open_guard();
  guards_.insert(guard.index);
  return guard;
}

bool Node::close_guard(Ref guard) {
  if (published_.inherited()) {
    return false;
  }
  const std::lock_guard lock(guards_mutex_);
  if (!guards_.contains(guard.index) || !published_.kill_guard(guard)) {
    return false;
  }
  guards_.erase(guard.index);
  published_.free_guard(guard.index);
  return true;
}

Ref Node::open_key() {
  published_.require_owner();
  const std::lock_guard lock(keys_mutex_);
  const Ref key = published_.open_guard();
  keys_.insert(key.index);
  return key;
}

bool Node::close_key(Ref key) {
  if (published_.inherited()) {
    return false;
  }
  const std::lock_guard lock(keys_mutex_);
  if (keys_.erase(key.index) == 0) {
    return false;
  }
  const bool was_live = published_.kill_guard(key);
  published_.free_guard(key.index);
  return was_live;
}

bool Node::consume(Ref key) {
  if (published_.inherited()) {
    return false;
  }
  const std::lock_guard lock(keys_mutex_);
  if (!keys_.contains(key.index) || !published_.kill_guard(key)) {
    return false;
  }
  consumed_.push_back(key);
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(consumed_event_.get(), &one, sizeof one);
  return true;
}

std::vector<Ref> Node::take_consumed() {
  if (published_.inherited()) {
    return {};
  }
  const std::lock_guard lock(keys_mutex_);
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(consumed_event_.get(), &count, sizeof count);
  return std::exchange(consumed_, {});
}

}  // namespace ldd
