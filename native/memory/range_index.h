// A tree of address ranges, ordered by begin, in which each subtree has its greatest end. Whether
// some range contains another takes one walk from the root, however the ranges overlap.
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

// A treap, about 2 ln n deep. Not thread-safe.
class RangeIndex {
 public:
  // `owner` identifies the owner of the range; a range may have several owners.
  void add(Range range, std::uint64_t owner);
  // Does nothing if it is not present.
  void remove(Range range, std::uint64_t owner);
  // Returns the owner of a range that contains [address, address + length), or null; valid until
  // the next add or remove. Overflow-safe. Adds the number of visited nodes to `steps`, if given.
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
