// A driver library that stands in for libcuda.so.1 where there is no GPU, stricter than hardware:
// device memory is mapped unreadable at its device address, so that any touch by the processor or
// by process_vm_readv faults; only the functions of this library reach it, through a second
// mapping. Names and numbers are those of the CUDA driver API. `faults.cc` lists the variables of
// the environment that make it fail, `entry.cc` the functions for tests.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace fake {

using Address = std::uint64_t;

enum Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kEccUncorrectable = 214,
  kPeerAccessUnsupported = 217,
  kOperatingSystem = 304,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kPeerAccessAlreadyEnabled = 704,
  kHostAlreadyRegistered = 712,
  kHostNotRegistered = 713,
  kNotSupported = 801,
};

// One memory file, which names its device, mapped readable and writable where only this library
// knows. Its address at the device is elsewhere. Pages are shared with the processes that open it.
class Backing {
 public:
  // Null if the memory cannot be had, also beyond what FAKE_CUDA_MEMORY leaves of the device.
  static std::shared_ptr<Backing> make(std::size_t size, int device);
  // Of a file that another process has made; the descriptor passes to it.
  static std::shared_ptr<Backing> of_file(int fd, std::size_t size, int device, bool own = false);
  Backing(int fd, std::byte* data, std::size_t size, int device, bool own)
      : fd(fd), data(data), size(size), device(device), own(own) {}
  Backing(const Backing&) = delete;
  Backing& operator=(const Backing&) = delete;
  ~Backing();

  const int fd;
  std::byte* const data;
  const std::size_t size;
  const int device;
  const bool own;  // takes memory of the device for this process
};

// The device that a memory file of a stand-in belongs to, or -1.
int device_of_file(int fd);

// Which devices may read and write a mapping of virtual memory, a bit for each; all of them what
// was allocated, as a driver copies between devices by itself.
struct Rights {
  unsigned readers = ~0U;
  unsigned writers = ~0U;
};

// A range of device addresses. What was allocated is one piece; reserved addresses have a piece for
// each mapping.
struct Piece {
  std::size_t size = 0;
  std::shared_ptr<Backing> backing;
  std::size_t offset = 0;    // in the backing
  Rights rights;             // of the devices
  Address reservation = 0;   // of virtual memory, else 0
  std::uint64_t number = 0;  // unique in the process
  bool imported = false;
  unsigned handle_types = 0;  // in which its memory can be exported
};

struct Context;

// Runs operations in order, on a thread of its own.
class Stream {
 public:
  Stream(Context& context, bool blocking);
  ~Stream();
  void submit(std::function<int()> operation);
  [[nodiscard]] bool idle();
  void drain();

  Context& context;
  const bool blocking;

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<int()>> waiting_;
  bool busy_ = false;
  bool ending_ = false;
  std::thread thread_;
};

struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t recorded = 0;
  std::uint64_t done = 0;
  Context* context = nullptr;
};

// The primary context of a device. An error of an operation stays: each later call returns it.
struct Context {
  int device = 0;
  std::atomic<int> retained{0};
  std::atomic<int> error{kSuccess};
  std::atomic<unsigned> peers{0};  // bit set of devices whose memory it may access
  std::mutex mutex;                // guards what follows
  std::map<void*, std::shared_ptr<Stream>> streams;
  std::shared_ptr<Stream> default_stream;
};

// Of the whole process.
constexpr int kMostDevices = 8;
int device_count();
Context& context_of(int device);
Context* current();  // of the calling thread, or null
std::vector<Context*>& context_stack();

// memory.cc
constexpr std::size_t kPage = 4096;
constexpr std::size_t kGranularity = std::size_t{2} << 20;
std::recursive_mutex& memory_mutex();
std::map<Address, Piece>& pieces();  // with the mutex held
Address reserve_addresses(std::size_t size, std::size_t alignment);
bool in_arena(Address address);
// Of a device: what a process has taken, and how much there is.
std::size_t taken(int device);
std::size_t capacity();
std::uint64_t next_number();
// The piece that contains the address, or none. With the mutex held.
std::map<Address, Piece>::iterator piece_of(Address address);
// Memory of the host that devices can access.
bool is_pinned(Address address, std::size_t size);
// The range of reserved addresses that contains an address; of size 0 if there is none.
std::pair<Address, std::size_t> reservation_of(Address address);
// Makes FAKE_CUDA_READABLE effective for a piece.
void show(Address address, const Piece& piece);
void hide(Address address, std::size_t size);

// copies.cc: carries out one copy now; any address is of a device or of this process.
int copy_now(Address to, Address from, std::size_t size);
// Whether the copy would be accepted.
int check_copy(Address to, Address from, std::size_t size);
// Calls `visit` with the bytes behind a range of device addresses, piece by piece.
int visit(Address address, std::size_t size,
          const std::function<void(std::byte*, std::size_t)>& visitor);
std::uint64_t copied_bytes();
// The device whose stream the calling thread runs; -1: none, and no rights are checked.
int& acting_device();

// streams.cc
std::shared_ptr<Stream> stream_of(void* handle, int& result);

// faults.cc
// The error that the environment or a test wants for this call, or that a context has kept. Counts
// the call.
int before_call(const char* function, bool needs_context = true);
int fault_in(Address address, std::size_t size);  // an uncorrectable error in that range
void wait_while_hung(int device);
bool peer_denied();
bool virtual_denied();
bool ipc_denied(const char* side);
bool readable();
std::uint64_t delay_us();

}  // namespace fake

#define FAKE_CUDA_CALL(...)                                      \
  do {                                                           \
    const int before = fake::before_call(__func__, __VA_ARGS__); \
    if (before != fake::kSuccess) {                              \
      return before;                                             \
    }                                                            \
  } while (false)
