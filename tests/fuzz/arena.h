// What the fuzz targets share: memory at fixed addresses, so that a corpus means the same in every
// run, and the two ends of a lane.
#pragma once

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "check.h"
#include "wire/tags.h"

namespace ldd_fuzz {

using ldd_test::kPage;

inline constexpr std::size_t kMaxInput = 4096;
inline constexpr std::uint64_t kBase = 0x20000000;
inline constexpr std::byte kSecret{0xE7};  // fills what no peer may read or write
inline constexpr std::uint64_t kSecretWord = 0xE7E7E7E7E7E7E7E7;
inline constexpr std::byte kOpen{0x11};  // fills what peers may touch

// Three readable pages and one without rights behind them.
class Arena {
 public:
  static Arena& get() {
    static Arena arena;
    return arena;
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, 3 * kPage}; }
  // Fills everything with the secret, and the range [begin, end) of addresses with kOpen.
  void reset() const { std::fill(bytes().begin(), bytes().end(), kSecret); }
  void open(std::uint64_t begin, std::uint64_t end) const {
    const std::uint64_t last = std::min<std::uint64_t>(end, kBase + 3 * kPage);
    std::fill(base_ + (begin - kBase), base_ + (last - kBase), kOpen);
  }
  // Whether every byte of [begin, end) is still secret; both are multiples of 8.
  [[nodiscard]] bool untouched(std::uint64_t begin, std::uint64_t end) const {
    std::uint64_t differing = 0;
    for (; begin < end; begin += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, base_ + (begin - kBase), sizeof word);
      differing |= word ^ kSecretWord;
    }
    return differing == 0;
  }

 private:
  Arena() {
    void* const wanted = reinterpret_cast<void*>(kBase);
    void* const got = ::mmap(wanted, 4 * kPage, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(got == wanted);
    base_ = static_cast<std::byte*>(got);
    CHECK(::mprotect(base_ + 3 * kPage, kPage, PROT_NONE) == 0);
  }
  std::byte* base_;
};

// Puts the right tags of a lane without secrets into the frames that `said` begins with, so that
// what is tested has to do with more than wrong tags. What is no frame stays as it is.
// With `answers` the tags of outcomes cover what came in chunks before them.
inline std::vector<std::byte> sealed(std::span<const std::byte> said, bool answers = false) {
  namespace wire = ldd::wire;
  wire::Tags tags;
  std::vector<std::byte> out;
  std::vector<std::byte> answer;
  while (said.size() >= wire::kHeaderBytes) {
    const auto header = wire::decode_header(said.first<wire::kHeaderBytes>());
    if (!header) {
      break;
    }
    const std::size_t end =
        std::min<std::size_t>(said.size(), wire::kHeaderBytes + header->body_bytes);
    const std::size_t covered = header->kind == wire::Kind::kChunk ? wire::kHeaderBytes : end;
    std::vector<std::byte> frame(said.begin(), said.begin() + wire::kHeaderBytes);
    frame.resize(wire::kHeadBytes);
    const auto body = said.first(end).subspan(wire::kHeaderBytes);
    std::vector<std::byte> more(
        body.begin(), body.begin() + static_cast<std::ptrdiff_t>(covered - wire::kHeaderBytes));
    if (answers && header->kind == wire::Kind::kChunk) {
      answer.insert(answer.end(), body.begin(), body.end());
    } else if (answers && header->kind == wire::Kind::kOutcome) {
      more.insert(more.end(), answer.begin(), answer.end());
    }
    tags.seal(frame, more);
    out.insert(out.end(), frame.begin(), frame.end());
    out.insert(out.end(), body.begin(), body.end());
    said = said.subspan(end);
  }
  out.insert(out.end(), said.begin(), said.end());
  return out;
}

// A stream socket pair; the other end belongs to what is tested.
class Ends {
 public:
  Ends() { CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds_) == 0); }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  ~Ends() { ::close(fds_[0]); }

  [[nodiscard]] int peer_fd() const { return fds_[1]; }  // to be adopted
  [[nodiscard]] std::size_t send(std::span<const std::byte> data) const {
    const ssize_t sent = ::send(fds_[0], data.data(), data.size(), MSG_NOSIGNAL);
    return sent < 0 ? 0 : static_cast<std::size_t>(sent);
  }
  // Appends what has come; returns how much.
  std::size_t drain(std::vector<std::byte>& into) const {
    std::size_t sum = 0;
    for (;;) {
      std::array<std::byte, 65536> room;
      const ssize_t got = ::recv(fds_[0], room.data(), room.size(), 0);
      if (got <= 0) {
        return sum;
      }
      into.insert(into.end(), room.begin(), room.begin() + got);
      sum += static_cast<std::size_t>(got);
    }
  }
  void hang_up() const { ::shutdown(fds_[0], SHUT_RDWR); }

 private:
  int fds_[2] = {-1, -1};
};

}  // namespace ldd_fuzz

// Given by each target; by name what libFuzzer calls.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
