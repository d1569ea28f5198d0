#include "lanes/gather.h"

#include <vector>

#include "copy/descriptors.h"
#include "copy/gather.h"

namespace ldd {

Gathered gather(Cursor cursor, std::span<std::byte> room) {
  // On the heap: a thread may have a small stack.
  thread_local std::vector<iovec> pieces(kMaxIovecs);
  prepare_guarded_copies();
  Gathered gathered;
  while (!cursor.done() && gathered.bytes < room.size()) {
    const Cursor::Filled filled = cursor.fill(pieces, room.size() - gathered.bytes);
    const std::span<const iovec> now = std::span(pieces).first(filled.pieces);
    const CopyFault fault = guarded_gather(room.data() + gathered.bytes, now);
    if (!fault.none()) {
      for (const iovec& piece : now.first(fault.piece)) {
        gathered.bytes += piece.iov_len;
      }
      gathered.fault = true;
      break;
    }
    cursor.advance(filled.bytes);
    gathered.bytes += filled.bytes;
  }
  return gathered;
}

}  // namespace ldd
