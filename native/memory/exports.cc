// The table of exports of a published page, for its owner and for its readers.
#include "memory/exports.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <optional>
#include <stdexcept>

#include "memory/published.h"

namespace ldd {

namespace {

using Word = std::atomic<std::uint64_t>;

// An Export without padding: 13 words.
struct Row {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::array<std::byte, 16> gpu{};
  std::uint64_t sharing = 0;
  std::array<std::byte, 64> handle{};
};
using RowWords = std::array<std::uint64_t, sizeof(Row) / sizeof(std::uint64_t)>;
static_assert(sizeof(Row) == sizeof(RowWords) && 1 + RowWords{}.size() <= kExportWords);

}  // namespace

bool PublishedView::exports_any() const {
  return header_->exports_used.load(std::memory_order_acquire) != 0;
}

bool PublishedView::export_live(Ref row) const {
  std::atomic_thread_fence(std::memory_order_acquire);
  return (row.value & 1) != 0 && row.index < kExportCapacity &&
         exports_[row.index * kExportWords].load(std::memory_order_seq_cst) == row.value;
}

std::optional<std::pair<Export, Ref>> PublishedView::find_export(std::uint64_t address,
                                                                 std::uint64_t length) const {
  const std::uint64_t used =
      std::min(header_->exports_used.load(std::memory_order_acquire), kExportCapacity);
  for (std::uint64_t index = 0; index < used; ++index) {
    const Word* const words = exports_ + index * kExportWords;
    const Ref row{index, words[0].load(std::memory_order_acquire)};
    RowWords copied{};
    for (std::size_t i = 0; i < copied.size(); ++i) {
      copied[i] = words[1 + i].load(std::memory_order_relaxed);
    }
    const Row found = std::bit_cast<Row>(copied);
    const bool inside =
        address >= found.begin && address <= found.end && length <= found.end - address;
    if (inside && export_live(row)) {
      return std::pair{Export{{found.begin, found.end}, found.gpu, found.sharing, found.handle},
                       row};
    }
  }
  return std::nullopt;
}

Ref Published::open_export(const Export& exported) {
  require_owner();
  const std::lock_guard lock(exports_mutex_);
  std::uint64_t index = header().exports_used.load(std::memory_order_relaxed);
  const bool reused = !free_exports_.empty();
  if (reused) {
    index = free_exports_.back();
    free_exports_.pop_back();
  } else if (index == kExportCapacity) {
    throw std::length_error("all exports of the instance are in use");
  }
  const Row row{exported.range.begin, exported.range.end, exported.gpu, exported.sharing,
                exported.handle};
  const auto copied = std::bit_cast<RowWords>(row);
  Word* const words = export_words() + index * kExportWords;
  for (std::size_t i = 0; i < copied.size(); ++i) {
    words[1 + i].store(copied[i], std::memory_order_relaxed);
  }
  const std::uint64_t value = words[0].fetch_add(1, std::memory_order_seq_cst) + 1;
  if (!reused) {
    header().exports_used.store(index + 1, std::memory_order_release);
  }
  return {index, value};
}

void Published::close_export(Ref row) {
  require_owner();
  if ((row.value & 1) == 0) {
    return;  // no row, or one that is free already
  }
  const std::lock_guard lock(exports_mutex_);
  Word& word = export_words()[row.index * kExportWords];
  std::uint64_t expected = row.value;
  if (word.compare_exchange_strong(expected, row.value + 1, std::memory_order_seq_cst)) {
    // Peers see what is written to the row from now on only after its end.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    free_exports_.push_back(row.index);
  }
}

}  // namespace ldd
