#include "copy/streaming.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ldd {

#if defined(__x86_64__)

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStep = 4 * kLine;
constexpr std::size_t kAhead = 1024;
constexpr std::size_t kLeastStreamed = 2048;

__attribute__((target("avx2"))) void copy_avx2(std::byte* to, const std::byte* from,
                                               std::size_t size_bytes) {
  const std::size_t head =
      std::min((kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine, size_bytes);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  size_bytes -= head;
  for (; size_bytes >= kStep; size_bytes -= kStep, to += kStep, from += kStep) {
    for (std::size_t line = 0; line < kStep; line += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + line), _MM_HINT_T0);
    }
    __m256i words[kStep / sizeof(__m256i)];
    for (std::size_t i = 0; i < std::size(words); ++i) {
      words[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + i);
    }
    for (std::size_t i = 0; i < std::size(words); ++i) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i, words[i]);
    }
  }
  std::memcpy(to, from, size_bytes);
}

}  // namespace

void streaming_copy(void* destination, const void* source, std::size_t size_bytes) {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (!has_avx2 || size_bytes < kLeastStreamed) {
    std::memcpy(destination, source, size_bytes);
    return;
  }
  copy_avx2(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source),
            size_bytes);
}

void finish_streaming() { _mm_sfence(); }

#else

void streaming_copy(void* destination, const void* source, std::size_t size_bytes) {
  std::memcpy(destination, source, size_bytes);
}

void finish_streaming() {}

#endif

}  // namespace ldd
