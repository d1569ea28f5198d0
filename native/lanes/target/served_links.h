// The links that one instance serves: their open lanes and, for pushes, where the bytes are.
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
#include "memory/node.h"

namespace ldd {

class ServedLane;

struct ServedCounts {
  std::atomic<std::uint64_t> requests{0};
  std::atomic<std::uint64_t> refused{0};          // requests that ended with another code than ok
  std::atomic<std::uint64_t> protocol_errors{0};  // lanes closed for malformed frames
  std::atomic<std::uint64_t> strayed_pushes{0};   // that named bytes outside the initiator's entry
  std::atomic<std::uint64_t> read_bytes{0};
  std::atomic<std::uint64_t> written_bytes{0};
  std::atomic<std::uint64_t> pushed_bytes{0};
};

// What a link's peer asked for that no correct one does.
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

  // False once closed.
  bool add(std::uint64_t link_id, std::shared_ptr<ServedLane> lane);
  // The lane touches no memory any more.
  void remove(std::uint64_t link_id, const ServedLane* lane);
  // The peer's process, on this host.
  void attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host);
  // Landing slots of this process for that peer, as a reader that is restricted to them.
  void attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing);
  // What pushes of the link are read from: the peer's process, unless there is none, or they go to
  // an accelerator, which only engines serve; then the landing slots. Null when there are none.
  [[nodiscard]] std::shared_ptr<HostPeer> source(std::uint64_t link_id, bool to_device) const;
  void offend(std::uint64_t link_id, bool strayed);
  // Those since the last call, of links that there are.
  std::vector<Offences> take_offences();
  [[nodiscard]] std::size_t count(std::uint64_t link_id) const;
  [[nodiscard]] std::size_t count() const;

  // The link's lanes, for closing; each stays counted until remove().
  std::vector<std::shared_ptr<ServedLane>> begin_drop(std::uint64_t link_id);
  // Returns when all of them are removed, and forgets the link.
  void wait_dropped(std::uint64_t link_id);
  // No lane is added from now on; returns the links that there are.
  std::vector<std::uint64_t> begin_close();

 private:
  struct Link {
    std::vector<std::shared_ptr<ServedLane>> lanes;
    std::shared_ptr<HostPeer> host;
    std::shared_ptr<HostPeer> landing;
    Offences offences;
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
