#include "lanes/target/server.h"

#include <cerrno>
#include <system_error>
#include <utility>

#include "lanes/target/io_threads.h"
#include "lanes/target/served_lane.h"

namespace ldd {

LaneServer::LaneServer(std::shared_ptr<Node> node)
    : links_(std::make_shared<ServedLinks>(std::move(node))) {}

void LaneServer::serve(LaneSocket socket, std::uint64_t link_id) {
  if (mark_.inherited()) {
    throw std::system_error(ECHILD, std::generic_category(), "the server of a parent process");
  }
  const auto lane = std::make_shared<ServedLane>(links_, link_id, std::move(socket),
                                                 IoThreads::at(links_->next_turn(link_id)));
  if (links_->node().closed() || !links_->add(link_id, lane)) {
    throw std::system_error(ESHUTDOWN, std::generic_category(), "the instance is closed");
  }
  lane->start();
}

void LaneServer::attach_host(std::uint64_t link_id, std::shared_ptr<HostPeer> host) {
  links_->attach_host(link_id, std::move(host));
}

void LaneServer::attach_landing(std::uint64_t link_id, std::shared_ptr<HostPeer> landing) {
  links_->attach_landing(link_id, std::move(landing));
}

void LaneServer::drop_link(std::uint64_t link_id) {
  if (mark_.inherited()) {
    return;
  }
  for (const auto& lane : links_->begin_drop(link_id)) {
    lane->shut();
  }
  links_->wait_dropped(link_id);
}

std::size_t LaneServer::link_lanes(std::uint64_t link_id) const { return links_->count(link_id); }

std::map<std::string, std::uint64_t> LaneServer::statistics() const {
  const ServedCounts& counts = links_->counts();
  return {
      {"lanes", links_->count()},
      {"requests", counts.requests.load()},
      {"refused", counts.refused.load()},
      {"protocol_errors", counts.protocol_errors.load()},
      {"strayed_pushes", counts.strayed_pushes.load()},
      {"read_bytes", counts.read_bytes.load()},
      {"written_bytes", counts.written_bytes.load()},
      {"pushed_bytes", counts.pushed_bytes.load()},
  };
}

void LaneServer::close() {
  if (mark_.inherited()) {
    return;
  }
  for (const std::uint64_t link_id : links_->begin_close()) {
    drop_link(link_id);
  }
}

}  // namespace ldd
