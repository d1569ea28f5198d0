// CRC-32C against published values and against the table; ranges on several threads; faults.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "check.h"
#include "copy/checksum.h"
#include "copy/crc32c.h"
#include "copy/guarded_copy.h"
#include "copy/streaming.h"
#include "copy/summed_copy.h"

namespace {

using ldd::Code;
using ldd::Outcome;
using ldd::Use;
using ldd_test::kPage;
using ldd_test::Pages;

constexpr std::int64_t kLong = 60'000'000'000;

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// RFC 3720, B.4, and the usual check value.
void check_published_values() {
  std::array<std::byte, 32> block{};
  const auto check = [](std::span<const std::byte> data, std::uint32_t sum) {
    CHECK(ldd::crc32c(data) == sum);
    CHECK(ldd::crc32c_by_instruction(data) == sum);
    CHECK(ldd::crc32c_by_table(data) == sum);
  };
  check({}, 0);
  check(bytes("123456789"), 0xE3069283);
  check(block, 0x8A9136AA);
  block.fill(std::byte{0xFF});
  check(block, 0x62A8AB43);
  for (std::size_t i = 0; i < block.size(); ++i) {
    block[i] = static_cast<std::byte>(i);
  }
  check(block, 0x46DD794E);
  for (std::size_t i = 0; i < block.size(); ++i) {
    block[i] = static_cast<std::byte>(31 - i);
  }
  check(block, 0x113FDB5C);
  check(bytes("The quick brown fox jumps over the lazy dog"), 0x22620404);
}

std::vector<std::byte> noise(std::size_t size) {
  std::vector<std::byte> data(size);
  std::uint64_t state = 88172645463325252ULL;
  for (std::byte& each : data) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    each = static_cast<std::byte>(state);
  }
  return data;
}

// Every path through the stretches: lengths around their bounds, any alignment, any cut.
void check_lengths_and_cuts() {
  const std::vector<std::byte> data = noise(40'000);
  const std::span<const std::byte> all(data);
  for (const std::size_t around : {0U, 8U, 256U, 320U, 512U, 576U, 768U, 1536U, 4096U, 12288U,
                                   24576U, 13056U, 16384U, 16448U, 16640U, 32768U, 39000U}) {
    for (std::size_t length = around < 9 ? 0 : around - 9; length < around + 9; ++length) {
      for (const std::size_t begin : {0U, 1U, 7U}) {
        const auto part = all.subspan(begin, length);
        const std::uint32_t sum = ldd::crc32c_by_table(part);
        CHECK(ldd::crc32c(part) == sum);
        CHECK(ldd::crc32c_by_instruction(part) == sum);
      }
    }
  }
  const std::uint32_t whole = ldd::crc32c(all);
  for (std::size_t cut = 0; cut <= all.size(); cut += 1237) {
    CHECK(ldd::crc32c(all.subspan(cut), ldd::crc32c(all.first(cut))) == whole);
  }
}

// Copies bring every byte, touch no other, and tell the checksum; of any length and alignment.
void check_summed_copies() {
  const std::vector<std::byte> data = noise(70'000);
  std::vector<std::byte> to(data.size());
  for (const auto copy : {&ldd::copy_and_checksum, &ldd::stream_and_checksum}) {
    for (const std::size_t length : {0U, 1U, 63U, 64U, 2047U, 2048U, 2111U, 2304U, 2305U, 4096U,
                                     16383U, 16385U, 16448U, 16640U, 32768U, 33000U, 65000U}) {
      for (const std::size_t begin : {0U, 1U, 40U, 63U}) {
        for (const std::size_t from : {0U, 5U}) {
          std::memset(to.data(), 0xA5, to.size());
          const auto part = std::span(data).subspan(from, length);
          const std::uint32_t sum = copy(to.data() + begin, part.data(), length, 0xABCD);
          ldd::finish_streaming();
          CHECK(sum == ldd::crc32c_by_table(part, 0xABCD));
          CHECK(std::equal(part.begin(), part.end(), to.data() + begin));
          const auto untouched = [](std::byte each) { return each == std::byte{0xA5}; };
          CHECK(std::all_of(to.data(), to.data() + begin, untouched));
          CHECK(std::all_of(to.data() + begin + length, to.data() + to.size(), untouched));
        }
      }
    }
  }
}

// Each flipped bit shows.
void check_single_bits() {
  std::vector<std::byte> data = noise(13'000);
  const std::uint32_t right = ldd::crc32c(data);
  for (std::size_t bit = 0; bit < 8 * data.size(); bit += 97) {
    data[bit / 8] ^= std::byte{1} << (bit % 8);
    CHECK(ldd::crc32c(data) != right);
    data[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

Outcome nothing_to_take(std::vector<Use>& uses) {
  static_cast<void>(uses);
  return {};
}

void check_ranges_on_several_threads() {
  const std::vector<std::byte> data = noise(9'000'000);
  std::vector<std::uint64_t> addresses;
  std::vector<std::uint64_t> lengths;
  std::size_t at = 0;
  const auto add = [&](std::size_t length) {
    addresses.push_back(reinterpret_cast<std::uint64_t>(data.data()) + at);
    lengths.push_back(length);
    at += length;
  };
  add(6'000'000);  // held in two steps
  add(0);
  for (std::size_t i = 0; i < 3000; ++i) {
    add(i % 777);
  }
  std::vector<std::uint32_t> sums(lengths.size());
  CHECK(ldd::checksum_ranges(addresses, lengths, nothing_to_take, Code::kLocalFault, sums).ok());
  at = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    CHECK(sums[i] == ldd::crc32c(std::span(data).subspan(at, lengths[i])));
    at += lengths[i];
  }
  CHECK(ldd::checksum_ranges({}, {}, nothing_to_take, Code::kLocalFault, {}).ok());
}

void check_faults_end_it() {
  const Pages pages(2048);
  std::memset(pages.data(), 1, pages.size_bytes());
  std::vector<std::uint64_t> addresses(2048);
  std::vector<std::uint64_t> lengths(2048, kPage);
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    addresses[i] = pages.address() + i * kPage;
  }
  std::vector<std::uint32_t> sums(2048);
  for (const std::size_t bad : {0U, 700U, 2047U}) {
    pages.protect(bad, PROT_NONE);
    const Outcome outcome =
        ldd::checksum_ranges(addresses, lengths, nothing_to_take, Code::kRemoteFault, sums);
    CHECK(outcome.code == Code::kRemoteFault);
    CHECK(outcome.index == static_cast<std::int64_t>(bad));
    pages.protect(bad, PROT_READ | PROT_WRITE);
  }
  CHECK(ldd::checksum_ranges(addresses, lengths, nothing_to_take, Code::kRemoteFault, sums).ok());
}

// Every page of a range counts, wherever in them it begins and ends, and none beside it.
void check_probes_reach_every_page() {
  const Pages pages(4);
  for (const std::size_t bad : {1U, 2U}) {
    pages.protect(bad, PROT_NONE);
    for (const std::size_t begin :
         {std::size_t{0}, std::size_t{1}, kPage - 1, kPage, 2 * kPage + 5}) {
      for (const std::size_t end : {kPage, kPage + 1, 2 * kPage, 3 * kPage, 4 * kPage}) {
        if (begin < end) {
          const bool touches = begin < (bad + 1) * kPage && end > bad * kPage;
          CHECK(ldd::guarded_probe(pages.data() + begin, end - begin) != touches);
        }
      }
    }
    pages.protect(bad, PROT_READ | PROT_WRITE);
  }
  CHECK(ldd::guarded_probe(nullptr, 0));
}

// Each range for itself, in order, until the deadline.
void check_probes_tell_ranges_apart() {
  const Pages pages(6);
  std::memset(pages.data(), 1, pages.size_bytes());
  pages.protect(2, PROT_NONE);
  const std::uint64_t at = pages.address();
  const std::vector<std::uint64_t> addresses{at, at + kPage, at + 2 * kPage + 9, at + 3 * kPage, 1};
  const std::vector<std::uint64_t> lengths{2 * kPage, kPage + 1, 1, 3 * kPage, 0};
  std::vector<std::uint8_t> readable;
  ldd::probe_each(addresses, lengths, ldd::now_ns() + kLong, readable);
  CHECK((readable == std::vector<std::uint8_t>{1, 0, 0, 1, 1}));
  ldd::probe_each(addresses, lengths, ldd::now_ns(), readable);
  CHECK(readable.empty());
}

void check_what_must_hold() {
  ldd::Node node(1, 64, 4096);
  const Pages pages(4);
  std::memset(pages.data(), 1, pages.size_bytes());
  const std::vector<std::uint64_t> addresses{pages.address()};
  const std::vector<std::uint64_t> lengths{pages.size_bytes()};
  std::vector<std::uint32_t> sums(1);
  const ldd::Ref entry =
      node.entries().open({{pages.address(), pages.address() + pages.size_bytes()}}, false);
  const auto code = [&](ldd::Ref ref, std::int64_t deadline_ns) {
    return ldd::checksum_entry(addresses, lengths, {&node, ref, deadline_ns}, sums).code;
  };
  CHECK(code(entry, ldd::now_ns() + kLong) == Code::kOk);
  CHECK(sums[0] == ldd::crc32c({pages.data(), pages.size_bytes()}));
  CHECK(code(entry, ldd::now_ns()) == Code::kTimeout);
  CHECK(code({}, ldd::now_ns() + kLong) == Code::kOk);
  CHECK(node.entries().close(entry));
  CHECK(code(entry, ldd::now_ns() + kLong) == Code::kLocalGone);
  node.close();
  CHECK(code({}, ldd::now_ns() + kLong) == Code::kClosed);
}

}  // namespace

int main() {
  check_published_values();
  check_lengths_and_cuts();
  check_summed_copies();
  check_single_bits();
  check_ranges_on_several_threads();
  check_faults_end_it();
  check_probes_reach_every_page();
  check_probes_tell_ranges_apart();
  check_what_must_hold();
  return 0;
}
