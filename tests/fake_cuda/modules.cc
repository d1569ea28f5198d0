// Modules and launches. A launch runs the meaning of this library's own kernels, by name; it checks
// that a device could reach each address.
#include <cstring>
#include <set>
#include <string>

#include "state.h"

namespace fake {

namespace {

struct CopyItem {
  std::uint64_t to;
  std::uint64_t from;
  std::uint64_t size;
};

struct Segment {
  std::uint64_t address;
  std::uint64_t size;
};

const std::set<std::string>& names() {
  static const auto* const all = new std::set<std::string>{"ldd_copy_list", "ldd_crc32c_list"};
  return *all;
}

// A kernel runs on a device: memory of the host must be pinned, and another device's must be open
// to it (cuCtxEnablePeerAccess).
bool reachable(const Context& context, Address address, std::size_t size) {
  if (size == 0 || !in_arena(address)) {
    return size == 0 || is_pinned(address, size);
  }
  const std::lock_guard lock(memory_mutex());
  const auto found = piece_of(address);
  if (found == pieces().end()) {
    return false;
  }
  const int owner = found->second.backing->device;
  return owner == context.device || (context.peers & (1U << owner)) != 0;
}

template <typename T>
int read_list(const Context& context, Address list, std::uint32_t count, std::vector<T>& items) {
  items.resize(count);
  const std::size_t size = count * sizeof(T);
  return reachable(context, list, size)
             ? copy_now(reinterpret_cast<Address>(items.data()), list, size)
             : kIllegalAddress;
}

// Blocks of a kernel run in any order: the last item first.
int copy_list(const Context& context, Address list, std::uint32_t count) {
  std::vector<CopyItem> items;
  int result = read_list(context, list, count, items);
  for (auto item = items.rbegin(); result == kSuccess && item != items.rend(); ++item) {
    const bool both =
        reachable(context, item->to, item->size) && reachable(context, item->from, item->size);
    result = both ? copy_now(item->to, item->from, item->size) : kIllegalAddress;
  }
  return result;
}

std::uint32_t crc32c(const std::vector<std::byte>& bytes) {
  std::uint32_t sum = ~0U;
  for (const std::byte byte : bytes) {
    sum ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) {
      sum = (sum >> 1) ^ ((sum & 1) != 0 ? 0x82F63B78U : 0U);
    }
  }
  return ~sum;
}

int crc32c_list(const Context& context, Address list, std::uint32_t count, Address sums) {
  std::vector<Segment> items;
  int result = read_list(context, list, count, items);
  if (!reachable(context, sums, count * sizeof(std::uint32_t))) {
    return kIllegalAddress;
  }
  for (std::size_t i = 0; result == kSuccess && i < items.size(); ++i) {
    std::vector<std::byte> bytes(items[i].size);
    result = reachable(context, items[i].address, items[i].size)
                 ? copy_now(reinterpret_cast<Address>(bytes.data()), items[i].address, bytes.size())
                 : kIllegalAddress;
    const std::uint32_t sum = crc32c(bytes);
    result = result == kSuccess
                 ? copy_now(sums + i * sizeof sum, reinterpret_cast<Address>(&sum), sizeof sum)
                 : result;
  }
  return result;
}

template <typename T>
T argument(void** arguments, std::size_t index) {
  T value{};
  std::memcpy(&value, arguments[index], sizeof value);
  return value;
}

}  // namespace
}  // namespace fake

extern "C" {

int cuModuleLoadData(void** module, const void* image) {
  FAKE_CUDA_CALL(true);
  // PTX is text with a version and a target.
  const std::string text(static_cast<const char*>(image));
  if (text.find(".version") == std::string::npos || text.find(".target") == std::string::npos) {
    return fake::kInvalidImage;
  }
  *module = new std::string(text);
  return fake::kSuccess;
}

int cuModuleUnload(void* module) {
  FAKE_CUDA_CALL(true);
  delete static_cast<std::string*>(module);
  return fake::kSuccess;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  FAKE_CUDA_CALL(true);
  const std::string entry = ".entry " + std::string(name) + "(";
  const auto known = fake::names().find(name);
  if (known == fake::names().end() ||
      static_cast<std::string*>(module)->find(entry) == std::string::npos) {
    return fake::kNotFound;
  }
  *function = const_cast<std::string*>(&*known);
  return fake::kSuccess;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned, unsigned, unsigned block_x, unsigned,
                   unsigned, unsigned, void* handle, void** arguments, void**) {
  FAKE_CUDA_CALL(true);
  int result = fake::kSuccess;
  const auto stream = fake::stream_of(handle, result);
  if (stream == nullptr || grid_x == 0 || block_x == 0 || block_x > 1024) {
    return stream == nullptr ? result : static_cast<int>(fake::kInvalidValue);
  }
  const std::string name = *static_cast<std::string*>(function);
  const auto list = fake::argument<fake::Address>(arguments, 0);
  const auto count = fake::argument<std::uint32_t>(arguments, 1);
  const fake::Address sums =
      name == "ldd_crc32c_list" ? fake::argument<fake::Address>(arguments, 2) : 0;
  fake::Context& context = stream->context;
  stream->submit([&context, name, list, count, sums] {
    if (context.error != fake::kSuccess) {
      return context.error.load();
    }
    return name == "ldd_copy_list" ? fake::copy_list(context, list, count)
                                   : fake::crc32c_list(context, list, count, sums);
  });
  return fake::kSuccess;
}
}
