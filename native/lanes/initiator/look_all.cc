#include "lanes/initiator/look_all.h"

#include <poll.h>

namespace ldd {

namespace {

// A free lane that hangs up is taken or closed by others meanwhile, so prune() looks again.
void prune_all(std::span<Lanes* const> links) {
  std::vector<pollfd> polled;
  std::vector<Lanes*> owners;
  for (Lanes* link : links) {
    link->add_free(polled);
    owners.resize(polled.size(), link);
  }
  if (::poll(polled.data(), polled.size(), 0) <= 0) {
    return;
  }
  for (std::size_t i = 0; i < polled.size(); ++i) {
    if (polled[i].revents != 0) {
      owners[i]->prune();
    }
  }
}

}  // namespace

Look look_all(std::span<Lanes* const> links, bool prune) {
  if (prune) {
    prune_all(links);
  }
  Look found;
  found.traffic.reserve(links.size());
  for (std::size_t place = 0; place < links.size(); ++place) {
    found.traffic.push_back(links[place]->traffic());
    if (!links[place]->complete()) {
      found.incomplete.push_back(place);
    }
  }
  return found;
}

}  // namespace ldd
