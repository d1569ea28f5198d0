// The target's side of an instance's lanes.
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

  // Serves an authenticated lane. Throws std::system_error, and closes the lane, if it cannot.
  void serve(LaneSocket socket, std::uint64_t link_id);
  // Pushes of that link read from `host`.
  void attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host);
  // Pushes of that link that cannot read from a host read from landing slots of this process.
  void attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing);
  // Closes the link's lanes. When it returns, none of their operations accesses memory any more.
  void drop_link(std::uint64_t link_id);
  [[nodiscard]] std::size_t link_lanes(std::uint64_t link_id) const;
  [[nodiscard]] std::shared_ptr<const LinkActivity> activity(std::uint64_t link_id) {
    return links_->activity(link_id);
  }
  [[nodiscard]] std::map<std::string, std::uint64_t> statistics() const;
  // Returns the requests since the last call that no correct peer sends.
  std::vector<Offences> take_offences() { return links_->take_offences(); }
  // Drops every link. Idempotent. Does nothing in a forked child, which serves no lanes.
  void close();

 private:
  ProcessMark mark_;
  std::shared_ptr<ServedLinks> links_;
};

}  // namespace ldd
