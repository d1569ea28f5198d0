// GATHER: copies scattered pieces into a buffer of this process and answers where it is. An
// initiator on this host reads it with one stretch of memory, instead of one for each piece.
#include <array>
#include <cerrno>

#include "lanes/gather.h"
#include "lanes/target/served_lane.h"

namespace ldd {

ServedLane::Progress ServedLane::begin_gather() {
  const Outcome checked = check_rights(Access::kTouch);
  if (!checked.ok()) {
    return reply(checked);
  }
  const std::uint64_t bytes = requested_bytes();
  if (bytes > wire::kMaxGatherBytes) {
    return protocol_error();
  }
  if (links_->source(link_id_, true) == nullptr) {  // the initiator could not read the buffer
    return reply(Outcome::failure(Code::kSystem, EOPNOTSUPP));
  }
  const std::span<std::byte> room = gathered_.room();
  if (room.empty()) {
    return reply(Outcome::failure(Code::kSystem, ENOMEM));
  }
  const Outcome outcome = run_gather(Cursor(column(0), column(1), 0, 0, bytes), room);
  if (!outcome.ok()) {
    return reply(outcome);
  }
  std::array<std::uint64_t, 1> address{reinterpret_cast<std::uint64_t>(room.data())};
  wire::convert_words(address);
  return reply(outcome, std::as_bytes(std::span(address)));
}

// At most kMaxGatherBytes, so that it is one batch.
Outcome ServedLane::run_gather(Cursor cursor, std::span<std::byte> room) {
  std::vector<Use> uses;
  const Outcome taken = rights_.take(uses);
  if (!taken.ok()) {
    return taken;
  }
  const Gathered gathered = gather(cursor, room);
  if (gathered.fault) {
    cursor.advance(gathered.bytes);
    return Outcome::failure(Code::kRemoteFault, EFAULT, static_cast<std::int64_t>(cursor.index()));
  }
  return rights_.key_live() ? Outcome{} : Outcome::failure(Code::kGone);
}

}  // namespace ldd
