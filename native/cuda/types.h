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

struct IpcHandle {
  std::array<std::byte, 64> bytes{};
};

struct Uuid {
  std::array<std::byte, 16> bytes{};
  friend bool operator==(const Uuid&, const Uuid&) = default;
};

}  // namespace ldd::cuda
