// The driver is found and copies; what the caller has made current stays current; errors of memory
// and of the driver are told apart.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "copy/guarded_copy.h"
#include "cuda/copy.h"
#include "cuda/device.h"
#include "cuda/fake_driver.h"

namespace {

using ldd::Code;
using ldd::Outcome;
using ldd_test::FakeDriver;

constexpr std::size_t kSize = 64 * 1024;

iovec range(std::uint64_t address, std::size_t size) {
  return {reinterpret_cast<void*>(address), size};
}
iovec range(std::vector<unsigned char>& bytes) { return {bytes.data(), bytes.size()}; }

Outcome copy(const iovec& to, const iovec& from, int device = 0) {
  return ldd::cuda::copy_pairs(device, &to, &from, 1);
}

// Also if the program loads the driver after it was looked for.
void check_present_only_when_loaded() {
  CHECK(ldd::cuda::present_driver().driver == nullptr);
  CHECK(ldd::cuda::present_driver().problem.find("not loaded yet") != std::string::npos);
  CHECK(::dlopen("libcuda.so.1", RTLD_NOW) != nullptr);
  CHECK(ldd::cuda::present_driver().driver != nullptr);
  const ldd::cuda::Loaded loaded = ldd::cuda::load_driver();
  CHECK(loaded.driver != nullptr && loaded.problem.empty());
  CHECK(ldd::cuda::present_driver().driver == loaded.driver);
}

void check_whose_memory(const FakeDriver& fake) {
  const ldd::cuda::Driver& driver = *ldd::cuda::present_driver().driver;
  const std::uint64_t first = fake.allocate(0, kSize, 1);
  const std::uint64_t second = fake.allocate(1, kSize, 1);
  CHECK(ldd::cuda::device_of(driver, first) == 0);
  CHECK(ldd::cuda::device_of(driver, second + kSize - 1) == 1);
  CHECK(!ldd::cuda::device_of(driver, reinterpret_cast<std::uint64_t>(&first)));
  std::string problem;
  const ldd::cuda::Uuid uuid = ldd::cuda::Device::find(driver, 1, problem)->uuid();
  CHECK(ldd::cuda::ordinal_of(driver, uuid) == 1);
  CHECK(!ldd::cuda::ordinal_of(driver, ldd::cuda::Uuid{}));
  CHECK(ldd::cuda::Device::find(driver, 7, problem) == nullptr);
  CHECK(problem.find("cuDeviceGetUuid") != std::string::npos);
}

void check_all_directions(const FakeDriver& fake) {
  const std::uint64_t first = fake.allocate(0, kSize, 3);
  const std::uint64_t second = fake.allocate(1, kSize, 4);
  ldd::prepare_guarded_copies();
  CHECK(!ldd::guarded_probe(reinterpret_cast<void*>(first), 1));  // only the driver reaches it
  std::vector<unsigned char> bytes(kSize);
  CHECK(copy(range(bytes), range(first, kSize)).ok() && bytes.front() == 3 && bytes.back() == 3);
  CHECK(copy(range(second, kSize), range(first, kSize), 1).ok());
  CHECK(copy(range(bytes), range(second, kSize), 1).ok() && bytes.back() == 3);
  bytes.assign(kSize, 5);
  const Outcome outcome = copy(range(first, kSize), range(bytes));
  CHECK(outcome.ok() && outcome.moved_bytes == kSize);
}

void check_current_context_stays(const FakeDriver& fake) {
  const std::uint64_t memory = fake.allocate(0, kSize, 3);
  std::vector<unsigned char> bytes(kSize);
  void* mine = nullptr;
  void* after = nullptr;
  CHECK(fake.call("cuCtxGetCurrent", &after) == 0 && after == nullptr);
  CHECK(copy(range(bytes), range(memory, kSize)).ok());
  CHECK(fake.call("cuCtxGetCurrent", &after) == 0 && after == nullptr);
  CHECK(fake.call("cuDevicePrimaryCtxRetain", &mine, 1) == 0);
  CHECK(fake.call("cuCtxPushCurrent_v2", mine) == 0);
  CHECK(copy(range(bytes), range(memory, kSize)).ok());
  CHECK(fake.call("cuCtxGetCurrent", &after) == 0 && after == mine);
  CHECK(fake.call("cuCtxPopCurrent_v2", &after) == 0);
}

void check_failures(const FakeDriver& fake) {
  const std::uint64_t memory = fake.allocate(0, kSize, 3);
  std::vector<unsigned char> bytes(kSize, 9);
  fake.call("fake_cuda_fail", "cuMemcpyAsync:1:2");
  const Outcome refused = copy(range(bytes), range(memory, kSize));
  CHECK(refused.code == Code::kSystem && refused.sys_errno == EIO);
  CHECK(bytes == std::vector<unsigned char>(kSize, 9));
  fake.call("fake_cuda_fail", "");
  CHECK(copy(range(bytes), range(memory, kSize)).ok());
  CHECK(copy(range(bytes), range(memory, kSize + 1)).code == Code::kSystem);  // beyond its end
  CHECK(copy(range(bytes), range(memory, kSize), 6).sys_errno == ENODEV);
}

// After a failed submission the copies before it are waited for.
void check_nothing_lands_after_a_failure(const FakeDriver& fake) {
  const std::uint64_t memory = fake.allocate(0, kSize, 3);
  std::vector<unsigned char> bytes(2);
  fake.call("fake_cuda_delay", std::uint64_t{20'000});
  fake.call("fake_cuda_fail", "cuMemcpyBatchAsync:*:801,cuMemcpyAsync:2:2");
  const std::vector<iovec> to{{bytes.data(), 1}, {&bytes[1], 1}};
  const std::vector<iovec> from{range(memory, 1), range(memory, 1)};
  CHECK(!ldd::cuda::copy_pairs(0, to.data(), from.data(), 2).ok());
  CHECK(bytes[0] == 3 && bytes[1] == 0);
  fake.call("fake_cuda_fail", "");
  fake.call("fake_cuda_delay", std::uint64_t{0});
}

void check_forked_child() {
  const pid_t child = ::fork();
  if (child == 0) {
    const bool refused = ldd::cuda::load_driver().problem.find("fork") != std::string::npos;
    ::_exit(refused ? 0 : 1);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child && status == 0);
}

// Last: the error stays with the context.
void check_memory_at_fault(const FakeDriver& fake) {
  const std::uint64_t memory = fake.allocate(1, kSize, 3);
  std::vector<unsigned char> bytes(kSize, 9);
  fake.call("fake_cuda_poison", memory + 100, std::size_t{8});
  CHECK(copy(range(bytes), range(memory, 100), 1).ok());
  CHECK(copy(range(bytes), range(memory, kSize), 1).code == Code::kLocalFault);
  CHECK(copy(range(bytes), range(memory, 100), 1).code == Code::kLocalFault);
}

}  // namespace

int main() {
  check_present_only_when_loaded();
  const FakeDriver fake;
  check_whose_memory(fake);
  check_all_directions(fake);
  check_current_context_stays(fake);
  check_failures(fake);
  check_nothing_lands_after_a_failure(fake);
  check_forked_child();
  check_memory_at_fault(fake);
  return 0;
}
