// Memory of a GPU for a pool of an instance: virtual memory that other processes can map.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cuda/virtual_memory.h"

namespace ldd::cuda {

// Bytes of a pool that are to have new memory.
struct Lost {
  Address begin = 0;
  std::size_t size = 0;
};

// Thread-safe, but for replace(): no work with the pool may be in progress then.
class DevicePool {
 public:
  // The most allocations that a pool consists of; each takes a descriptor while peers may map it.
  static constexpr std::size_t kMostPieces = 64;

  // Null, with the driver's result and a reason: kOutOfMemory, or no such GPU, or one without
  // virtual memory. `size` is rounded up to what the driver allocates.
  static std::shared_ptr<DevicePool> make(int ordinal, std::size_t size, Result& result,
                                          std::string& problem);
  DevicePool(std::unique_ptr<Reservation> addresses, std::size_t piece_bytes)
      : address_(addresses->begin()),
        size_(addresses->size()),
        piece_bytes_(piece_bytes),
        addresses_(std::move(addresses)) {}

  [[nodiscard]] Address address() const { return address_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  // Size of each allocation, but for the last one.
  [[nodiscard]] std::size_t piece_bytes() const { return piece_bytes_; }

  // Puts new memory behind the allocations that have bytes of the ranges, at the same addresses.
  // Their other bytes are kept; those of the ranges have any value. If that is not possible,
  // returns the driver's result and a reason, and everything has the memory that it had.
  Result replace(const std::vector<Lost>& ranges, std::string& problem);

  // Frees the memory. Idempotent.
  void close();

 private:
  struct Piece {
    std::size_t offset = 0;
    std::size_t size = 0;
    Physical memory;
  };

  // Makes the new memory of one allocation, with the bytes that are kept.
  [[nodiscard]] Result renew(const Piece& old, const std::vector<Lost>& ranges, Piece& made,
                             std::string& problem);
  [[nodiscard]] Result exchange(Piece& piece, Piece& made);

  Address address_;
  std::size_t size_;
  std::size_t piece_bytes_;
  std::vector<Piece> pieces_;
  std::unique_ptr<Reservation> addresses_;  // null once closed
};

}  // namespace ldd::cuda
