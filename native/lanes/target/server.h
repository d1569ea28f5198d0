// The serving side of an instance's lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fork.h"
#include "lanes/socket.h"
#include "lanes/target/served_links.h"

namespace ldd {

class LaneServer {
 public:
  explicit LaneServer(std::shared_ptr<Node> node);
  ~LaneServer() { close(); }
  LaneServer(const LaneServer&) = delete;
  LaneServer& operator=(const LaneServer&) = delete;

  // Serves an authenticated lane; throws std::system_error when it cannot be served (it is closed
  // then).
  void serve(LaneSocket socket, std::uint64_t link_id);
  // Lets pushes of that link be carried out by reading `host`.
  void attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host);
  // The same by reading landing slots of this process, where the peer has no other way.
  void attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing);
  // Closes the link's lanes; when this returns none of its operations touches memory any more.
  void drop_link(std::uint64_t link_id);
  [[nodiscard]] std::size_t link_lanes(std::uint64_t link_id) const;
  [[nodiscard]] std::map<std::string, std::uint64_t> statistics() const;
  // What peers asked for since the last call that no correct one does.
  std::vector<Offences> take_offences() { return links_->take_offences(); }
  // Drops every link. Idempotent. In a forked child, which serves nothing, this does nothing.
  void close();

 private:
  ProcessMark mark_;
  std::shared_ptr<ServedLinks> links_;
};

}  // namespace ldd
