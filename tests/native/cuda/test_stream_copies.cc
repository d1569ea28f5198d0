// Chunks of copies: who makes them, how many are in flight, and what a kernel must not reach.
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "check.h"
#include "cuda/copy.h"
#include "cuda/fake_driver.h"
#include "cuda/pinned.h"

namespace {

using ldd::CopyWay;
using ldd::cuda::Chunk;
using ldd::cuda::Result;
using ldd::cuda::Side;
using ldd::cuda::StreamCopies;
using ldd_test::FakeDriver;

constexpr std::size_t kPiece = 1000;  // not a multiple of what a thread copies
constexpr std::size_t kPieces = 20;

iovec range(std::uint64_t address, std::size_t size) {
  return {reinterpret_cast<void*>(address), size};
}

// Pieces of one allocation to pieces of another, in reverse order.
struct Work {
  std::vector<iovec> to;
  std::vector<iovec> from;
  std::uint64_t target;

  Work(const FakeDriver& fake, std::size_t piece, std::size_t count, int target_device = 0)
      : target(fake.allocate(target_device, piece * count, 1)) {
    const std::uint64_t source = fake.allocate(0, piece * count, 7);
    for (std::size_t i = 0; i < count; ++i) {
      from.push_back(range(source + i * piece, piece));
      to.push_back(range(target + (count - 1 - i) * piece, piece));
    }
  }
  [[nodiscard]] Chunk chunk(Side side = Side::kOnGpu) const {
    return {to.data(), from.data(), to.size(), side, side};
  }
};

std::vector<unsigned char> bytes_at(const FakeDriver& fake, std::uint64_t address,
                                    std::size_t size) {
  std::vector<unsigned char> found(size);
  CHECK(fake.call("cuMemcpyDtoH_v2", static_cast<void*>(found.data()), address, size) == 0);
  return found;
}

struct Calls {
  int kernels = 0;
  int batches = 0;
  int singles = 0;

  explicit Calls(const FakeDriver& fake)
      : kernels(fake.call("fake_cuda_calls", "cuLaunchKernel")),
        batches(fake.call("fake_cuda_calls", "cuMemcpyBatchAsync")),
        singles(fake.call("fake_cuda_calls", "cuMemcpyAsync")) {}
  friend bool operator==(const Calls&, const Calls&) = default;
  Calls(int launched, int batched, int single)
      : kernels(launched), batches(batched), singles(single) {}
};

Calls calls_of(const FakeDriver& fake, ldd::cuda::Device& device, CopyWay way, const Chunk& chunk,
               Result expected = Result::kSuccess) {
  fake.call("fake_cuda_fail", "");  // counts from zero
  StreamCopies copies(device, way);
  copies.begin(chunk);
  CHECK(copies.finish() == expected);
  return Calls(fake);
}

void check_who_copies(const FakeDriver& fake, ldd::cuda::Device& device) {
  const Work small(fake, kPiece, kPieces);
  CHECK(calls_of(fake, device, CopyWay::kAuto, small.chunk()) == Calls(1, 0, 0));
  CHECK(bytes_at(fake, small.target, kPiece * kPieces) ==
        std::vector<unsigned char>(kPiece * kPieces, 7));
  CHECK(calls_of(fake, device, CopyWay::kKernel, small.chunk()) == Calls(1, 0, 0));
  CHECK(calls_of(fake, device, CopyWay::kEngine, small.chunk()) == Calls(0, 1, 0));
  CHECK(calls_of(fake, device, CopyWay::kKernel, small.chunk(Side::kElsewhere)) == Calls(0, 1, 0));
  const Work large(fake, ldd::cuda::kKernelBelowBytes, 2);
  CHECK(calls_of(fake, device, CopyWay::kAuto, large.chunk()) == Calls(0, 1, 0));
  CHECK(calls_of(fake, device, CopyWay::kKernel, large.chunk()) == Calls(1, 0, 0));
  CHECK(bytes_at(fake, large.target + ldd::cuda::kKernelBelowBytes * 2 - 1, 1)[0] == 7);
  const Work one(fake, ldd::cuda::kKernelBelowBytes, 1);
  CHECK(calls_of(fake, device, CopyWay::kAuto, one.chunk()) == Calls(0, 0, 1));
}

// A kernel would end the program's context.
void check_a_range_beyond_its_allocation(const FakeDriver& fake, ldd::cuda::Device& device) {
  Work work(fake, kPiece, 2);
  work.from[1].iov_len += 4096;
  work.to[1] = range(work.target, work.from[1].iov_len);
  const Calls calls = calls_of(fake, device, CopyWay::kKernel, work.chunk(), Result::kInvalidValue);
  CHECK(calls.kernels == 0);
  CHECK(bytes_at(fake, work.target, 1).size() == 1);  // the context lives
}

void check_pinned_memory(const FakeDriver& fake, ldd::cuda::Device& device) {
  const auto block = ldd::cuda::PinnedPool::instance().take(device.driver());
  const auto begin = reinterpret_cast<std::uint64_t>(block.get());
  block.get()[0] = std::byte{9};
  const std::uint64_t target = fake.allocate(0, kPiece, 1);
  const iovec to = range(target, kPiece);
  const iovec from = range(begin, kPiece);
  const Chunk chunk{&to, &from, 1, Side::kOnGpu, Side::kPinned};
  CHECK(calls_of(fake, device, CopyWay::kKernel, chunk) == Calls(1, 0, 0));
  CHECK(bytes_at(fake, target, 1)[0] == 9);
}

void check_drivers_without_batches(const FakeDriver& fake, ldd::cuda::Device& device) {
  const Work work(fake, kPiece, kPieces);
  fake.call("fake_cuda_fail", "cuMemcpyBatchAsync:*:801");
  StreamCopies copies(device, CopyWay::kEngine);
  copies.begin(work.chunk());
  CHECK(copies.finish() == Result::kSuccess);
  CHECK(fake.call("fake_cuda_calls", "cuMemcpyAsync") == static_cast<int>(kPieces));
  CHECK(bytes_at(fake, work.target, 1)[0] == 7);
}

void check_most_in_flight(const FakeDriver& fake, ldd::cuda::Device& device) {
  const Work work(fake, kPiece, kPieces);
  const auto held = std::make_shared<int>(0);
  fake.call("fake_cuda_fail", "");
  fake.call("fake_cuda_hang", 0, 1);
  {
    StreamCopies copies(device, CopyWay::kAuto, 2);
    copies.begin(work.chunk(), held);
    copies.begin(work.chunk(), held);
    CHECK(fake.call("fake_cuda_calls", "cuEventQuery") == 0);  // none has waited yet
    CHECK(held.use_count() == 3);
    fake.call("fake_cuda_hang", 0, 0);
    copies.begin(work.chunk(), held);
    CHECK(fake.call("fake_cuda_calls", "cuEventQuery") > 0);
    CHECK(held.use_count() == 3);
    CHECK(copies.finish() == Result::kSuccess && held.use_count() == 1);
  }
  fake.call("fake_cuda_fail", "cuMemHostAlloc:*:2");  // its lists are used again
  CHECK(calls_of(fake, device, CopyWay::kAuto, work.chunk()) == Calls(1, 0, 0));
}

// What was submitted before a failure has ended when begin() returns.
void check_nothing_is_in_flight_after_a_failure(const FakeDriver& fake, ldd::cuda::Device& device) {
  const Work first(fake, kPiece, kPieces);
  const Work second(fake, kPiece, kPieces);
  fake.call("fake_cuda_fail", "cuLaunchKernel:2:2");
  fake.call("fake_cuda_delay", std::uint64_t{20'000});
  StreamCopies copies(device, CopyWay::kAuto);
  const auto held = std::make_shared<int>(0);
  CHECK(copies.begin(first.chunk(), held) == Result::kSuccess);
  CHECK(copies.begin(second.chunk(), held) == Result::kOutOfMemory);
  CHECK(held.use_count() == 1);
  fake.call("fake_cuda_delay", std::uint64_t{0});
  CHECK(bytes_at(fake, first.target, 1)[0] == 7);
  CHECK(bytes_at(fake, second.target, 1)[0] == 1);
  CHECK(copies.begin(second.chunk()) == Result::kOutOfMemory);
  CHECK(copies.finish() == Result::kOutOfMemory);
  fake.call("fake_cuda_fail", "");
}

// An old GPU, or an old driver: engines copy, and the reason is kept.
void check_kernels_that_the_driver_refuses(const FakeDriver& fake) {
  const ldd::cuda::Driver& driver = *ldd::cuda::present_driver().driver;
  std::string problem;
  ldd::cuda::Device* const device = ldd::cuda::Device::find(driver, 1, problem);
  const ldd::cuda::Current current(driver, device->context());
  fake.call("fake_cuda_fail", "cuModuleLoadData:1:222");
  CHECK(device->kernels() == nullptr && device->kernels() == nullptr);
  CHECK(fake.call("fake_cuda_calls", "cuModuleLoadData") == 1);
  CHECK(device->kernels_problem().find("cuModuleLoadData") == 0);
  const std::uint64_t memory = fake.allocate(1, kPiece, 7);
  std::vector<iovec> to;
  std::vector<iovec> from;
  for (std::size_t i = 0; i < 2; ++i) {
    to.push_back(range(fake.allocate(1, kPiece, 1), kPiece));
    from.push_back(range(memory, kPiece));
  }
  const Chunk chunk{to.data(), from.data(), 2, Side::kOnGpu, Side::kOnGpu};
  CHECK(calls_of(fake, *device, CopyWay::kKernel, chunk) == Calls(0, 1, 0));
}

}  // namespace

int main() {
  const FakeDriver fake;
  const ldd::cuda::Loaded loaded = ldd::cuda::load_driver();
  std::string problem;
  ldd::cuda::Device* const device = ldd::cuda::Device::find(*loaded.driver, 0, problem);
  CHECK(device != nullptr);
  check_kernels_that_the_driver_refuses(fake);
  const ldd::cuda::Current current(*loaded.driver, device->context());
  check_who_copies(fake, *device);
  check_a_range_beyond_its_allocation(fake, *device);
  check_pinned_memory(fake, *device);
  check_drivers_without_batches(fake, *device);
  check_most_in_flight(fake, *device);
  check_nothing_is_in_flight_after_a_failure(fake, *device);
  return 0;
}
