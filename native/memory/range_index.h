// Address ranges by begin, where each subtree knows its greatest end: whether some range holds
// another wholly takes one walk from the root, however the ranges overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>

namespace ldd {

struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;  // one past the last byte
};

// A treap, so about 2 ln n deep. Not thread-safe.
class RangeIndex {
 public:
  // `owner` says whose range it is; the same range may have several owners.
  void add(Range range, std::uint64_t owner);
  // Does nothing when it is not there.
  void remove(Range range, std::uint64_t owner);
  // The owner of a range with [address, address + length) wholly inside, or null; overflow-safe.
  // Adds the nodes it looked at to `steps`, if given. Valid until the next add or remove.
  [[nodiscard]] const std::uint64_t* find(std::uint64_t address, std::uint64_t length,
                                          std::size_t* steps = nullptr) const;

 private:
  struct Node;
  struct Delete {
    void operator()(Node* node) const;
  };
  using Tree = std::unique_ptr<Node, Delete>;

  static void update(Node& node);
  static bool before(const Node& a, const Node& b);
  static void split(Tree tree, const Node& at, Tree& low, Tree& high);  // `at` itself goes high
  static Tree merge(Tree low, Tree high);
  static bool erase(Tree& tree, const Node& what);

  Tree root_;
  std::minstd_rand priorities_{std::random_device{}()};
};

}  // namespace ldd
