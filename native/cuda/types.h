// Types and numbers of the CUDA driver API that the library uses, from its public documentation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ldd::cuda {

using Address = std::uint64_t;  // of a device or, as addresses are unified, of the host
using ContextHandle = void*;
using StreamHandle = void*;
using EventHandle = void*;
using ModuleHandle = void*;
using FunctionHandle = void*;
using MemoryHandle = std::uint64_t;  // of memory that cuMemCreate has made

enum class Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kEccUncorrectable = 214,
  kNvlinkUncorrectable = 220,
  kNotReady = 600,
  kIllegalAddress = 700,
  kPeerAccessAlreadyEnabled = 704,
  kContained = 721,
  kNotSupported = 801,
};

// Attributes of a pointer.
enum class PointerFact : int {
  kMemoryType = 2,
  kIsManaged = 8,
  kDevice = 9,
  kHasIpcHandle = 10,  // of an allocation, and not of virtual memory or a stream's pool
  kMappingSize = 18,   // of virtual memory
  kMappingBegin = 19,
};
inline constexpr unsigned kOnDevice = 2;  // a memory type

inline constexpr unsigned kNonBlocking = 1;       // a stream that does not wait for the default one
inline constexpr unsigned kEnablePeerAccess = 1;  // when an IPC handle is opened
inline constexpr unsigned kPortable = 1;          // pinned memory that all contexts reach

inline constexpr unsigned kNoTiming = 2;  // an event that keeps no time

// Attributes of the copies of a batch (CUmemcpyAttributes). The hints are for managed memory only.
struct CopyAttributes {
  int source_order = 1;  // sources are read when the stream comes to them
  std::array<int, 2> source_hint{};
  std::array<int, 2> destination_hint{};
  unsigned flags = 0;
};

// Attributes of a device.
enum class DeviceFact : int {
  kVirtualMemory = 102,
  kDescriptors = 103,      // of virtual memory
  kVirtualOverRdma = 110,  // network cards can reach virtual memory
};

struct Location {
  int type = 1;  // a device
  int id = 0;
};

// How memory is made.
struct Properties {
  int type = 1;          // pinned, the only one there is
  int handle_types = 0;  // bit set
  Location location;
  void* windows_data = nullptr;
  unsigned char compression = 0;
  unsigned char over_rdma = 0;
  std::array<unsigned char, 6> reserved{};
};
static_assert(sizeof(Properties) == 32);
inline constexpr int kDescriptorHandle = 1;  // a handle type

struct Access {
  Location location;
  int flags = 0;
};
inline constexpr int kReadOnly = 1;
inline constexpr int kReadWrite = 3;

struct IpcHandle {
  std::array<std::byte, 64> bytes{};
};

struct Uuid {
  std::array<std::byte, 16> bytes{};
  friend bool operator==(const Uuid&, const Uuid&) = default;
};

}  // namespace ldd::cuda
