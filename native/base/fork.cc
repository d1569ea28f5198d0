#include "base/fork.h"

#include <pthread.h>

#include <atomic>

namespace ldd {

namespace {

std::atomic<std::uint64_t> generation{0};

void count_child() { generation.fetch_add(1, std::memory_order_relaxed); }

[[maybe_unused]] const int kRegistered = ::pthread_atfork(nullptr, nullptr, count_child);

}  // namespace

std::uint64_t fork_generation() { return generation.load(std::memory_order_relaxed); }

}  // namespace ldd
