// Failures on demand. The environment is read once, when the library is first called:
//
//   FAKE_CUDA_DEVICES=2              number of devices
//   FAKE_CUDA_FAIL=cuMemAlloc:3:2    the third call of a function returns 2; `*` for each call;
//   several
//                                    with commas. The name is without its version.
//   FAKE_CUDA_BLOCK=cuMemcpyAsync:3  that call does not return, until fake_cuda_unblock()
//   FAKE_CUDA_ECC=4096:512           bytes of the arena of device addresses with an uncorrectable
//                                    error: offset and size
//   FAKE_CUDA_HANG=1                 operations of that device never end
//   FAKE_CUDA_NO_PEER=1              no device may access another's memory
//   FAKE_CUDA_NO_VIRTUAL=1           no device has virtual memory, as of old cards
//   FAKE_CUDA_MEMORY=bytes           of each device; more is out of memory
//   FAKE_CUDA_NO_IPC=get | open      handles cannot be made, or not be opened, as in containers
//   FAKE_CUDA_DELAY_US=200           each operation of a stream waits that long before it acts
//   FAKE_CUDA_WITHOUT=cuMemcpyBatchAsync  a driver that has no such function
//   FAKE_CUDA_READABLE=1             device memory is readable where it is, for engines that would
//                                    otherwise need a real GPU
//
// The functions fake_cuda_* change the same at run time.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "state.h"

namespace fake {

namespace {

struct Rule {
  std::string function;
  std::uint64_t nth = 0;  // 0 = each call
  int result = 0;
  bool blocks = false;
};

struct Faults {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Rule> rules;
  std::unordered_map<std::string, std::uint64_t> calls;
  std::map<Address, std::size_t> poisoned;
  unsigned hung = 0;  // bit set of devices
  bool blocking = true;
  std::atomic<bool> no_peer{false};
  std::atomic<bool> no_virtual{false};
  std::atomic<std::size_t> memory{std::size_t{32} << 30};
  std::string no_ipc;
  std::atomic<std::uint64_t> delay_us{0};
  bool readable = false;
  pid_t pid = ::getpid();
};

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    parts.push_back(part);
  }
  return parts;
}

Rule rule_of(const std::string& text, bool blocks) {
  const std::vector<std::string> parts = split(text, ':');
  Rule rule;
  rule.blocks = blocks;
  rule.function = parts.at(0);
  rule.nth = parts.size() < 2 || parts[1] == "*" ? 0 : std::stoull(parts[1]);
  rule.result = parts.size() < 3 ? 0 : std::stoi(parts[2]);
  return rule;
}

Faults* read_environment() {
  auto* const made = new Faults;
  for (const std::string& each : split(variable("FAKE_CUDA_FAIL"), ',')) {
    made->rules.push_back(rule_of(each, false));
  }
  for (const std::string& each : split(variable("FAKE_CUDA_BLOCK"), ',')) {
    made->rules.push_back(rule_of(each, true));
  }
  if (const std::string device = variable("FAKE_CUDA_HANG"); !device.empty()) {
    made->hung = 1U << std::stoul(device);
  }
  if (const std::string delay = variable("FAKE_CUDA_DELAY_US"); !delay.empty()) {
    made->delay_us = std::stoull(delay);
  }
  made->no_peer = !variable("FAKE_CUDA_NO_PEER").empty();
  made->no_virtual = !variable("FAKE_CUDA_NO_VIRTUAL").empty();
  if (const std::string memory = variable("FAKE_CUDA_MEMORY"); !memory.empty()) {
    made->memory = std::stoull(memory);
  }
  made->no_ipc = variable("FAKE_CUDA_NO_IPC");
  made->readable = !variable("FAKE_CUDA_READABLE").empty();
  return made;
}

Faults& faults() {
  static Faults* const one = read_environment();
  return *one;
}

std::string without_version(std::string name) {
  const std::size_t mark = name.rfind("_v");
  return mark == std::string::npos ? name : name.substr(0, mark);
}

// With the mutex held.
int apply_rules(std::unique_lock<std::mutex>& lock, const std::string& function) {
  Faults& state = faults();
  const std::uint64_t count = ++state.calls[function];
  int result = kSuccess;
  bool blocks = false;
  for (const Rule& rule : state.rules) {
    if (rule.function == function && (rule.nth == 0 || rule.nth == count)) {
      result = rule.blocks ? result : rule.result;
      blocks = blocks || rule.blocks;
    }
  }
  if (blocks) {
    state.changed.wait(lock, [&] { return !state.blocking; });
  }
  return result;
}

}  // namespace

int before_call(const char* function, bool needs_context) {
  Faults& state = faults();
  if (state.pid != ::getpid()) {
    return kNotInitialized;  // a driver does not survive a fork
  }
  {
    std::unique_lock lock(state.mutex);
    const int result = apply_rules(lock, without_version(function));
    if (result != kSuccess) {
      return result;
    }
  }
  if (!needs_context) {
    return kSuccess;
  }
  Context* const context = current();
  return context == nullptr ? kInvalidContext : context->error.load();
}

int fault_in(Address address, std::size_t size) {
  Faults& state = faults();
  const std::lock_guard lock(state.mutex);
  const bool bad = std::any_of(state.poisoned.begin(), state.poisoned.end(), [&](const auto& each) {
    return each.first < address + size && address < each.first + each.second;
  });
  return bad ? kEccUncorrectable : kSuccess;
}

void wait_while_hung(int device) {
  Faults& state = faults();
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&] { return (state.hung & (1U << device)) == 0; });
}

bool peer_denied() { return faults().no_peer; }
bool virtual_denied() { return faults().no_virtual; }
std::size_t capacity() { return faults().memory; }
bool ipc_denied(const char* side) {
  const std::lock_guard lock(faults().mutex);
  return faults().no_ipc == side;
}
bool readable() { return faults().readable; }
std::uint64_t delay_us() { return faults().delay_us; }

}  // namespace fake

extern "C" {

// `text` as in FAKE_CUDA_FAIL or FAKE_CUDA_BLOCK; the count of calls begins again. Empty: none.
void fake_cuda_fail(const char* text) {
  fake::Faults& state = fake::faults();
  const std::lock_guard lock(state.mutex);
  state.rules.clear();
  state.calls.clear();
  for (const std::string& each : fake::split(text, ',')) {
    state.rules.push_back(fake::rule_of(each, false));
  }
}

void fake_cuda_block(const char* text) {
  fake::Faults& state = fake::faults();
  const std::lock_guard lock(state.mutex);
  state.blocking = true;
  state.calls.clear();
  for (const std::string& each : fake::split(text, ',')) {
    state.rules.push_back(fake::rule_of(each, true));
  }
}

void fake_cuda_unblock() {
  fake::Faults& state = fake::faults();
  const std::lock_guard lock(state.mutex);
  state.blocking = false;
  state.rules.clear();
  state.changed.notify_all();
}

void fake_cuda_hang(int device, int hangs) {
  fake::Faults& state = fake::faults();
  const std::lock_guard lock(state.mutex);
  const unsigned bit = 1U << device;
  state.hung = hangs != 0 ? state.hung | bit : state.hung & ~bit;
  state.changed.notify_all();
}

// An uncorrectable error in [address, address + size); size 0: none anywhere.
void fake_cuda_poison(std::uint64_t address, std::size_t size) {
  fake::Faults& state = fake::faults();
  const std::lock_guard lock(state.mutex);
  if (size == 0) {
    state.poisoned.clear();
    return;
  }
  state.poisoned[address] = size;
}

void fake_cuda_deny_peer(int denied) { fake::faults().no_peer = denied != 0; }

void fake_cuda_deny_virtual(int denied) { fake::faults().no_virtual = denied != 0; }

// Bytes of each device; 0: as at the start.
void fake_cuda_memory(std::size_t bytes) {
  fake::faults().memory = bytes == 0 ? std::size_t{32} << 30 : bytes;
}

// "get", "open" or "".
void fake_cuda_deny_ipc(const char* side) {
  const std::lock_guard lock(fake::faults().mutex);
  fake::faults().no_ipc = side;
}

void fake_cuda_delay(std::uint64_t microseconds) { fake::faults().delay_us = microseconds; }

std::uint64_t fake_cuda_calls(const char* function) {
  const std::lock_guard lock(fake::faults().mutex);
  return fake::faults().calls[function];
}
}
