// Devices, primary contexts, and access between devices.
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace fake {

int device_count() {
  static const int count = [] {
    const char* const text = std::getenv("FAKE_CUDA_DEVICES");
    const int wanted = text == nullptr ? 2 : std::atoi(text);
    return wanted < 0 || wanted > kMostDevices ? kMostDevices : wanted;
  }();
  return count;
}

Context& context_of(int device) {
  static auto* const all = [] {
    auto* const made = new std::array<Context, kMostDevices>;
    for (int i = 0; i < kMostDevices; ++i) {
      (*made)[static_cast<std::size_t>(i)].device = i;
    }
    return made;
  }();
  return (*all)[static_cast<std::size_t>(device)];
}

std::vector<Context*>& context_stack() {
  thread_local std::vector<Context*> stack;
  return stack;
}

Context* current() {
  const std::vector<Context*>& stack = context_stack();
  return stack.empty() ? nullptr : stack.back();
}

namespace {

bool initialized = false;

bool known(int device) { return device >= 0 && device < device_count(); }

bool usable(const void* context) {
  for (int i = 0; i < device_count(); ++i) {
    if (context == &context_of(i)) {
      return context_of(i).retained > 0;
    }
  }
  return false;
}

}  // namespace
}  // namespace fake

extern "C" {

int cuInit(unsigned) {
  FAKE_CUDA_CALL(false);
  fake::initialized = true;
  return fake::device_count() == 0 ? 100 : fake::kSuccess;
}

int cuDriverGetVersion(int* version) {
  FAKE_CUDA_CALL(false);
  *version = 12080;
  return fake::kSuccess;
}

int cuDeviceGetCount(int* count) {
  FAKE_CUDA_CALL(false);
  *count = fake::device_count();
  return fake::initialized ? fake::kSuccess : fake::kNotInitialized;
}

int cuDeviceGet(int* device, int ordinal) {
  FAKE_CUDA_CALL(false);
  *device = ordinal;
  return fake::known(ordinal) ? fake::kSuccess : fake::kInvalidDevice;
}

int cuDeviceGetUuid_v2(void* uuid, int device) {
  FAKE_CUDA_CALL(false);
  if (!fake::known(device)) {
    return fake::kInvalidDevice;
  }
  std::array<char, 16> bytes{"fake device 0"};
  bytes.back() = static_cast<char>(device);
  std::memcpy(uuid, bytes.data(), bytes.size());
  return fake::kSuccess;
}

int cuDeviceGetAttribute(int* value, int which, int device) {
  FAKE_CUDA_CALL(false);
  *value = which == 75 ? 8 : which == 76 ? 0 : 1;  // compute capability 8.0; else yes, or one
  if (which == 102 || which == 103) {              // virtual memory, and descriptors of it
    *value = fake::virtual_denied() ? 0 : 1;
  }
  return fake::known(device) ? fake::kSuccess : fake::kInvalidDevice;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  FAKE_CUDA_CALL(false);
  if (!fake::known(device)) {
    return fake::kInvalidDevice;
  }
  ++fake::context_of(device).retained;
  *context = &fake::context_of(device);
  return fake::kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  FAKE_CUDA_CALL(false);
  if (!fake::known(device) || fake::context_of(device).retained == 0) {
    return fake::kInvalidContext;
  }
  --fake::context_of(device).retained;
  return fake::kSuccess;
}

int cuCtxGetCurrent(void** context) {
  FAKE_CUDA_CALL(false);
  *context = fake::current();
  return fake::kSuccess;
}

int cuCtxSetCurrent(void* context) {
  FAKE_CUDA_CALL(false);
  if (context != nullptr && !fake::usable(context)) {
    return fake::kInvalidContext;
  }
  auto& stack = fake::context_stack();
  if (!stack.empty()) {
    stack.pop_back();
  }
  if (context != nullptr) {
    stack.push_back(static_cast<fake::Context*>(context));
  }
  return fake::kSuccess;
}

int cuCtxPushCurrent_v2(void* context) {
  FAKE_CUDA_CALL(false);
  if (!fake::usable(context)) {
    return fake::kInvalidContext;
  }
  fake::context_stack().push_back(static_cast<fake::Context*>(context));
  return fake::kSuccess;
}

int cuCtxPopCurrent_v2(void** context) {
  FAKE_CUDA_CALL(false);
  auto& stack = fake::context_stack();
  if (stack.empty()) {
    return fake::kInvalidContext;
  }
  if (context != nullptr) {
    *context = stack.back();
  }
  stack.pop_back();
  return fake::kSuccess;
}

int cuDeviceCanAccessPeer(int* can, int device, int peer) {
  FAKE_CUDA_CALL(false);
  if (!fake::known(device) || !fake::known(peer)) {
    return fake::kInvalidDevice;
  }
  *can = device != peer && !fake::peer_denied() ? 1 : 0;
  return fake::kSuccess;
}

int cuCtxEnablePeerAccess(void* peer, unsigned) {
  FAKE_CUDA_CALL(true);
  if (!fake::usable(peer) || peer == fake::current()) {
    return fake::kInvalidContext;
  }
  if (fake::peer_denied()) {
    return fake::kPeerAccessUnsupported;
  }
  const unsigned bit = 1U << static_cast<fake::Context*>(peer)->device;
  const unsigned before = fake::current()->peers.fetch_or(bit);
  return (before & bit) != 0 ? fake::kPeerAccessAlreadyEnabled : fake::kSuccess;
}

int cuGetErrorName(int result, const char** name) {
  switch (result) {
    case fake::kInvalidValue:
      *name = "CUDA_ERROR_INVALID_VALUE";
      return fake::kSuccess;
    case fake::kOutOfMemory:
      *name = "CUDA_ERROR_OUT_OF_MEMORY";
      return fake::kSuccess;
    case fake::kEccUncorrectable:
      *name = "CUDA_ERROR_ECC_UNCORRECTABLE";
      return fake::kSuccess;
    case fake::kNotSupported:
      *name = "CUDA_ERROR_NOT_SUPPORTED";
      return fake::kSuccess;
    default:
      *name = nullptr;
      return fake::kInvalidValue;
  }
}

// Takes the errors away that contexts have kept, as only a new process could.
void fake_cuda_revive() {
  for (int i = 0; i < fake::device_count(); ++i) {
    fake::context_of(i).error = fake::kSuccess;
  }
}
}
