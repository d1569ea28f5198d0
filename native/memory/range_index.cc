#include "memory/range_index.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

namespace ldd {

struct RangeIndex::Node {
  Range range;
  std::uint64_t owner = 0;
  std::uint64_t greatest_end = 0;  // of the subtree
  std::uint_fast32_t priority = 0;
  Tree low;
  Tree high;
};

// NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the deleter of an incomplete type
void RangeIndex::Delete::operator()(Node* node) const { delete node; }

void RangeIndex::update(Node& node) {
  node.greatest_end = node.range.end;
  for (const Tree* child : {&node.low, &node.high}) {
    if (*child != nullptr) {
      node.greatest_end = std::max(node.greatest_end, (*child)->greatest_end);
    }
  }
}

bool RangeIndex::before(const Node& a, const Node& b) {
  return std::tie(a.range.begin, a.range.end, a.owner) <
         std::tie(b.range.begin, b.range.end, b.owner);
}

void RangeIndex::split(Tree tree, const Node& at, Tree& low, Tree& high) {
  if (tree == nullptr) {
    low.reset();
    high.reset();
  } else if (before(*tree, at)) {
    split(std::move(tree->high), at, tree->high, high);
    update(*tree);
    low = std::move(tree);
  } else {
    split(std::move(tree->low), at, low, tree->low);
    update(*tree);
    high = std::move(tree);
  }
}

RangeIndex::Tree RangeIndex::merge(Tree low, Tree high) {
  if (low == nullptr || high == nullptr) {
    return low == nullptr ? std::move(high) : std::move(low);
  }
  if (low->priority > high->priority) {
    low->high = merge(std::move(low->high), std::move(high));
    update(*low);
    return low;
  }
  high->low = merge(std::move(low), std::move(high->low));
  update(*high);
  return high;
}

void RangeIndex::add(Range range, std::uint64_t owner) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): owned by the line itself
  Tree added(new Node{range, owner, range.end, priorities_(), {}, {}});
  Tree low;
  Tree high;
  split(std::move(root_), *added, low, high);
  root_ = merge(merge(std::move(low), std::move(added)), std::move(high));
}

bool RangeIndex::erase(Tree& tree, const Node& what) {
  if (tree == nullptr) {
    return false;
  }
  if (before(what, *tree) || before(*tree, what)) {
    const bool erased = erase(before(what, *tree) ? tree->low : tree->high, what);
    update(*tree);
    return erased;
  }
  tree = merge(std::move(tree->low), std::move(tree->high));
  return true;
}

void RangeIndex::remove(Range range, std::uint64_t owner) {
  const Node what{range, owner, 0, 0, {}, {}};
  erase(root_, what);
}

const std::uint64_t* RangeIndex::find(std::uint64_t address, std::uint64_t length,
                                      std::size_t* steps) const {
  if (length > std::numeric_limits<std::uint64_t>::max() - address) {
    return nullptr;
  }
  const std::uint64_t end = address + length;
  const Node* node = root_.get();
  while (node != nullptr && node->greatest_end >= end) {
    if (steps != nullptr) {
      ++*steps;
    }
    const bool begins_early = node->range.begin <= address;
    if (begins_early && node->range.end >= end) {
      return &node->owner;
    }
    // This range and all of `low` begin early enough, so one that ends late enough suffices.
    const bool low_ends_late = node->low != nullptr && node->low->greatest_end >= end;
    node = !begins_early || low_ends_late ? node->low.get() : node->high.get();
  }
  return nullptr;
}

}  // namespace ldd
