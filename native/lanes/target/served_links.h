// The links that one instance serves: their open lanes and, for pushes, the memory to read from.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "host/peer.h"
#include "lanes/activity.h"
#include "memory/node.h"

namespace ldd {

class ServedLane;

struct ServedCounts {
  std::atomic<std::uint64_t> requests{0};
  std::atomic<std::uint64_t> refused{0};          // requests that did not end with ok
  std::atomic<std::uint64_t> protocol_errors{0};  // lanes closed for malformed frames
  std::atomic<std::uint64_t> strayed_pushes{0};   // pushes of bytes outside the initiator's entry
  std::atomic<std::uint64_t> read_bytes{0};
  std::atomic<std::uint64_t> written_bytes{0};
  std::atomic<std::uint64_t> pushed_bytes{0};
};

// Requests of a link's peer that no correct peer sends.
struct Offences {
  std::uint64_t link_id = 0;
  std::uint64_t malformed = 0;  // frames that ended their lane
  std::uint64_t strayed = 0;    // pushes of bytes outside the initiator's entry
};

// Thread-safe.
class ServedLinks {
 public:
  explicit ServedLinks(std::shared_ptr<Node> node) : node_(std::move(node)) {}

  [[nodiscard]] Node& node() const { return *node_; }
  [[nodiscard]] ServedCounts& counts() { return counts_; }

  // Returns false once closed.
  bool add(std::uint64_t link_id, std::shared_ptr<ServedLane> lane);
  // The turn of the link's next lane. The lanes of a link have successive turns, and so have the
  // first lanes of links: peers mostly use the same lane of each link, as it was opened last, and
  // one thread would serve all of those.
  std::size_t next_turn(std::uint64_t link_id);
  // The lane must no longer access memory.
  void remove(std::uint64_t link_id, const ServedLane* lane);
  // Of a link that is served, or will be.
  std::shared_ptr<LinkActivity> activity(std::uint64_t link_id);
  // Sets the peer's process on this host.
  void attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host);
  // Sets a reader that is restricted to this process's landing slots for that peer.
  void attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing);
  // Returns the memory from which a push of the link is read: the peer's process, if the push names
  // an entry of the peer, else the landing slots; if there is only one of them, that. May be null.
  [[nodiscard]] std::shared_ptr<HostPeer> source(std::uint64_t link_id, bool names_entry) const;
  void offend(std::uint64_t link_id, bool strayed);
  // Returns the offences of existing links since the last call.
  std::vector<Offences> take_offences();
  [[nodiscard]] std::size_t count(std::uint64_t link_id) const;
  [[nodiscard]] std::size_t count() const;

  // Returns the link's lanes, to be closed; each counts until remove().
  std::vector<std::shared_ptr<ServedLane>> begin_drop(std::uint64_t link_id);
  // Waits until all of them are removed, then forgets the link.
  void wait_dropped(std::uint64_t link_id);
  // Refuses new lanes from now on. Returns the existing links.
  std::vector<std::uint64_t> begin_close();

 private:
  static std::size_t first_turn();

  struct Link {
    std::vector<std::shared_ptr<ServedLane>> lanes;
    std::shared_ptr<HostPeer> host;
    std::shared_ptr<HostPeer> landing;
    Offences offences;
    std::size_t turn = first_turn();
    std::shared_ptr<LinkActivity> activity = std::make_shared<LinkActivity>();
  };

  std::shared_ptr<Node> node_;
  std::atomic<bool> offended_{false};
  ServedCounts counts_;
  mutable std::mutex mutex_;
  std::condition_variable lane_removed_;
  std::unordered_map<std::uint64_t, Link> links_;
  bool closed_ = false;
};

}  // namespace ldd
