// Rows of the table of exports in a published page: one word, odd while the row is live, and the
// words of an Export.
#pragma once

#include <cstdint>

namespace ldd {

inline constexpr std::uint64_t kExportWords = 16;

}  // namespace ldd
