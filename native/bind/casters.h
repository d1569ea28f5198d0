// Conversions of the core's value types to Python: references and outcomes are plain tuples,
// descriptor arrays are borrowed buffers.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/outcome.h"
#include "copy/descriptors.h"
#include "memory/published.h"

namespace ldd {

// A one-dimensional contiguous array of uint64, or bytes that consist of such, borrowed from Python
// for the length of one call. It uses the buffer protocol directly, which takes a tenth of the time
// of an ndarray exchange: the latency of a small transfer consists of such calls.
class BorrowedU64 {
 public:
  BorrowedU64() = default;
  BorrowedU64(const BorrowedU64&) = delete;
  BorrowedU64& operator=(const BorrowedU64&) = delete;
  BorrowedU64(BorrowedU64&& other) noexcept
      : view_(other.view_), held_(std::exchange(other.held_, false)) {}
  BorrowedU64& operator=(BorrowedU64&& other) noexcept {
    std::swap(view_, other.view_);
    std::swap(held_, other.held_);
    return *this;
  }
  ~BorrowedU64() {
    if (held_) {
      ::PyBuffer_Release(&view_);
    }
  }

  bool borrow(PyObject* object) noexcept {
    if (::PyObject_GetBuffer(object, &view_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
      ::PyErr_Clear();
      return false;
    }
    held_ = true;
    if (view_.ndim != 1 || view_.format == nullptr) {
      return false;
    }
    if (PyBytes_CheckExact(object)) {
      return view_.len % sizeof(std::uint64_t) == 0;
    }
    return view_.itemsize == sizeof(std::uint64_t) &&
           (std::strcmp(view_.format, "L") == 0 || std::strcmp(view_.format, "Q") == 0);
  }
  [[nodiscard]] std::span<const std::uint64_t> span() const {
    return {static_cast<const std::uint64_t*>(view_.buf),
            static_cast<std::size_t>(view_.len) / sizeof(std::uint64_t)};
  }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

inline Descriptors descriptors_of(const BorrowedU64& local, const BorrowedU64& remote,
                                  const BorrowedU64& length) {
  return {local.span(), remote.span(), length.span()};
}

// Of three rows, one after the other: local addresses, remote addresses, lengths. One buffer takes
// a third of the time of three. Throws std::invalid_argument if they differ in length.
inline Descriptors descriptors_of(const BorrowedU64& rows) {
  const std::span<const std::uint64_t> words = rows.span();
  const std::size_t count = words.size() / 3;
  if (words.size() != 3 * count) {
    throw std::invalid_argument("descriptors must be three rows of one length, got " +
                                std::to_string(words.size()) + " words");
  }
  return {words.first(count), words.subspan(count, count), words.last(count)};
}

// Throws ValueError if it has another length.
inline Proof proof_of(const nanobind::bytes& bytes) {
  Proof proof{};
  if (bytes.size() != proof.size()) {
    throw nanobind::value_error("a proof has 16 bytes");
  }
  std::memcpy(proof.data(), bytes.data(), proof.size());
  return proof;
}

}  // namespace ldd

NAMESPACE_BEGIN(NB_NAMESPACE)
NAMESPACE_BEGIN(detail)

template <>
struct type_caster<ldd::BorrowedU64> {
  using Value = ldd::BorrowedU64;
  static constexpr auto Name = const_name("numpy.typing.NDArray[numpy.uint64] | bytes");
  template <typename T>
  using Cast = movable_cast_t<T>;
  template <typename T>
  static constexpr bool can_cast() {
    return true;
  }
  explicit operator Value*() { return &value; }
  explicit operator Value&() { return value; }
  explicit operator Value&&() { return static_cast<Value&&>(value); }

  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    return value.borrow(source.ptr());
  }

  Value value;
};

template <>
struct type_caster<ldd::Ref> {
  NB_TYPE_CASTER(ldd::Ref, const_name("tuple[int, int]"))

  bool from_python(handle source, std::uint8_t flags, cleanup_list* cleanup) noexcept {
    if (!PyTuple_Check(source.ptr()) || ::PyTuple_Size(source.ptr()) != 2) {
      return false;
    }
    make_caster<std::uint64_t> index;
    make_caster<std::uint64_t> word;
    if (!index.from_python(::PyTuple_GetItem(source.ptr(), 0), flags, cleanup) ||
        !word.from_python(::PyTuple_GetItem(source.ptr(), 1), flags, cleanup)) {
      return false;
    }
    value = {index.value, word.value};
    return true;
  }
  static handle from_cpp(const ldd::Ref& ref, rv_policy, cleanup_list*) noexcept {
    return make_tuple(ref.index, ref.value).release();
  }
};

template <>
struct type_caster<ldd::Outcome> {
  NB_TYPE_CASTER(ldd::Outcome, const_name("tuple[int, int, int, int]"))

  static handle from_cpp(const ldd::Outcome& outcome, rv_policy, cleanup_list*) noexcept {
    return make_tuple(static_cast<std::int32_t>(outcome.code), outcome.sys_errno, outcome.index,
                      outcome.moved_bytes)
        .release();
  }
};

NAMESPACE_END(detail)
NAMESPACE_END(NB_NAMESPACE)
