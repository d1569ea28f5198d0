// The source of the kernels, compiled for the processor: a block at a time, with a thread for each
// of its threads. Shows what they compute, not that a GPU runs them.
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "check.h"
#include "copy/crc32c.h"

namespace {

struct Index {
  unsigned x = 0;
};
struct alignas(16) uint4 {
  unsigned words[4];
};

thread_local Index threadIdx;
Index blockIdx;
Index blockDim;
Index gridDim;
std::barrier<>* all_threads = nullptr;

void __syncthreads() { all_threads->arrive_and_wait(); }
void atomicXor(unsigned* word, unsigned value) {
  std::atomic_ref<unsigned>(*word).fetch_xor(value);
}

}  // namespace

#define __global__
#define __device__
#define __shared__ static
#include "cuda/kernels/kernels.cu"

namespace {

template <typename Kernel>
void launch(unsigned blocks, unsigned threads, const Kernel& kernel) {
  gridDim.x = blocks;
  blockDim.x = threads;
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  all_threads = &barrier;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    ldd_test::on_threads(threads, [&](std::size_t i) {
      threadIdx.x = static_cast<unsigned>(i);
      kernel();
    });
  }
}

Bytes address_of(const std::byte* bytes) { return reinterpret_cast<Bytes>(bytes); }

std::vector<std::byte> bytes_of(std::size_t size) {
  std::vector<std::byte> made(size);
  std::uint32_t word = 1;
  for (std::byte& byte : made) {
    word = word * 1664525 + 1013904223;
    byte = static_cast<std::byte>(word >> 24);
  }
  return made;
}

void check_copies() {
  const std::vector<std::byte> from = bytes_of(4096);
  std::vector<std::byte> to(4096);
  std::vector<std::byte> expected(4096);
  std::vector<CopyItem> items;
  for (const auto& [offset, source, size] :
       {std::array<std::size_t, 3>{0, 0, 1024}, {1024, 16, 33}, {1100, 7, 100}, {2000, 9, 0}}) {
    items.push_back({address_of(to.data() + offset), address_of(from.data() + source), size});
    std::memcpy(expected.data() + offset, from.data() + source, size);
  }
  launch(3, 32, [&] { ldd_copy_list(items.data(), static_cast<Word>(items.size())); });
  CHECK(to == expected);
}

void check_sums() {
  const std::vector<std::byte> bytes = bytes_of(10'000);
  std::vector<Segment> segments;
  std::vector<std::uint32_t> expected;
  std::size_t offset = 0;
  for (const std::size_t size : {0, 1, 9, 255, 256, 257, 4096}) {
    segments.push_back({address_of(bytes.data() + offset), size});
    expected.push_back(ldd::crc32c({bytes.data() + offset, size}));
    offset += size;
  }
  std::vector<Word> sums(segments.size());
  launch(2, kThreads,
         [&] { ldd_crc32c_list(segments.data(), static_cast<Word>(sums.size()), sums.data()); });
  CHECK(std::equal(sums.begin(), sums.end(), expected.begin(), expected.end()));
}

}  // namespace

int main() {
  check_copies();
  check_sums();
  return 0;
}
