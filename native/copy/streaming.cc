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
constexpr std::size_t kPair = 2 * kLine;
constexpr std::size_t kStep = 4 * kLine;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kGroup = 4 * kPage;
constexpr std::size_t kLeastStreamed = 2048;

template <std::size_t Bytes>
__attribute__((target("avx2"))) inline void stream(std::byte* to, const std::byte* from) {
  __m256i words[Bytes / sizeof(__m256i)];
  for (std::size_t i = 0; i < std::size(words); ++i) {
    words[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + i);
  }
  for (std::size_t i = 0; i < std::size(words); ++i) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i, words[i]);
  }
}

template <std::size_t Bytes>
inline void prefetch(const std::byte* from) {
  for (std::size_t line = 0; line < Bytes; line += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(from + line), _MM_HINT_T0);
  }
}

__attribute__((target("avx2"))) void copy_avx2(std::byte* to, const std::byte* from,
                                               std::size_t size_bytes) {
  const std::size_t head =
      std::min((kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine, size_bytes);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  size_bytes -= head;
  // Interleaves four pages, which the processor prefetches independently.
  for (; size_bytes >= kGroup; size_bytes -= kGroup, to += kGroup, from += kGroup) {
    for (std::size_t at = 0; at < kPage; at += kPair) {
      for (std::size_t page = 0; page < kGroup; page += kPage) {
        prefetch<kPair>(from + page + at + 4 * kPair);
      }
      for (std::size_t page = 0; page < kGroup; page += kPage) {
        stream<kPair>(to + page + at, from + page + at);
      }
    }
  }
  for (; size_bytes >= kStep; size_bytes -= kStep, to += kStep, from += kStep) {
    prefetch<kStep>(from + 4 * kStep);
    stream<kStep>(to, from);
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
