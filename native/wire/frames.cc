#include "wire/frames.h"

#include <cstring>
#include <type_traits>

namespace ldd::wire {

namespace {

constexpr std::uint64_t kMaxRequestBody =
    kRequestBytes + std::uint64_t{kMaxDescriptors} * 3 * sizeof(std::uint64_t);

template <typename T>
T swap_unless_little(T value) {
  if constexpr (std::endian::native == std::endian::big) {
    T swapped = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      swapped = static_cast<T>((swapped << 8) | ((value >> (8 * i)) & 0xFF));
    }
    return swapped;
  }
  return value;
}

template <typename T>
void swap_all_unless_little(std::span<T> words) {
  if constexpr (std::endian::native == std::endian::big) {
    for (T& word : words) {
      word = swap_unless_little(word);
    }
  }
}

class Writer {
 public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}
  template <typename T>
  void put(T value) {
    static_assert(std::is_unsigned_v<T>);
    const T little = swap_unless_little(value);
    std::memcpy(out_.data(), &little, sizeof little);
    out_ = out_.subspan(sizeof little);
  }
  void skip(std::size_t bytes) { out_ = out_.subspan(bytes); }

 private:
  std::span<std::byte> out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <typename T>
  T get() {
    static_assert(std::is_unsigned_v<T>);
    T little = 0;
    std::memcpy(&little, in_.data(), sizeof little);
    in_ = in_.subspan(sizeof little);
    return swap_unless_little(little);
  }

 private:
  std::span<const std::byte> in_;
};

std::uint64_t body_of(Kind kind, std::uint64_t count) {
  return kRequestBytes + count * words_per_descriptor(kind) * sizeof(std::uint64_t);
}

std::uint16_t flags_of(Kind kind) {
  if (kind == Kind::kWrite) {
    return kTargetsClock | kInlinePayload;
  }
  return is_request(kind) ? kTargetsClock : std::uint16_t{0};
}

bool known(std::uint8_t kind) { return (kind >= 1 && kind <= 10) || (kind >= 16 && kind <= 18); }

bool body_fits(Kind kind, std::uint32_t body_bytes) {
  switch (kind) {
    case Kind::kChunk:
      return body_bytes > 0 && body_bytes <= kMaxChunkBytes;
    case Kind::kOutcome:
      return body_bytes == kOutcomeBytes;
    case Kind::kGo:
      return body_bytes == 0;
    default:
      return body_bytes >= kRequestBytes && body_bytes <= kMaxRequestBody;
  }
}

void put_header(Writer& out, const Header& header) {
  out.put(kMagic);
  out.put(kVersion);
  out.put(static_cast<std::uint8_t>(header.kind));
  out.put(header.flags);
  out.put(header.body_bytes);
  out.put(header.sequence);
  out.skip(kTagBytes);
}

}  // namespace

bool is_request(Kind kind) { return kind <= Kind::kGather; }

bool has_answer(Kind kind) {
  return kind == Kind::kReadLog || kind == Kind::kChecksum || kind == Kind::kGather;
}

std::size_t words_per_descriptor(Kind kind) {
  switch (kind) {
    case Kind::kRead:
    case Kind::kWrite:
    case Kind::kChecksum:
    case Kind::kProbe:
    case Kind::kGather:
      return 2;
    case Kind::kPush:
      return 3;
    default:
      return 0;
  }
}

Head encode_header(const Header& header) {
  Head bytes{};
  Writer out(bytes);
  put_header(out, header);
  return bytes;
}

RequestFrame encode_request(Kind kind, std::uint16_t flags, std::uint32_t sequence,
                            const Request& request) {
  RequestFrame bytes{};
  Writer out(bytes);
  put_header(out,
             {kind, flags, static_cast<std::uint32_t>(body_of(kind, request.count)), sequence});
  for (const std::uint64_t word :
       {request.deadline_ns, request.remaining_ns, request.version, request.cache_index,
        request.cache_value, request.key_index, request.key_value, request.offset, request.size}) {
    out.put(word);
  }
  out.put(request.count);
  out.put(std::uint32_t{0});
  return bytes;
}

OutcomeFrame encode_outcome(std::uint32_t sequence, const Reply& reply) {
  OutcomeFrame bytes{};
  Writer out(bytes);
  put_header(out, {Kind::kOutcome, 0, kOutcomeBytes, sequence});
  out.put(static_cast<std::uint32_t>(reply.outcome.code));
  out.put(static_cast<std::uint32_t>(reply.outcome.sys_errno));
  out.put(static_cast<std::uint64_t>(reply.outcome.index));
  out.put(reply.outcome.moved_bytes);
  out.put(reply.value);
  return bytes;
}

std::optional<Header> decode_header(std::span<const std::byte, kHeaderBytes> bytes) {
  Reader in(bytes);
  if (in.get<std::uint32_t>() != kMagic || in.get<std::uint8_t>() != kVersion) {
    return std::nullopt;
  }
  const auto kind = in.get<std::uint8_t>();
  if (!known(kind)) {
    return std::nullopt;
  }
  Header header;
  header.kind = static_cast<Kind>(kind);
  header.flags = in.get<std::uint16_t>();
  header.body_bytes = in.get<std::uint32_t>();
  header.sequence = in.get<std::uint32_t>();
  const unsigned allowed = flags_of(header.kind);
  if ((header.flags & ~allowed) != 0 || !body_fits(header.kind, header.body_bytes)) {
    return std::nullopt;
  }
  return header;
}

std::optional<Request> decode_request(const Header& header,
                                      std::span<const std::byte, kRequestBytes> bytes) {
  Reader in(bytes);
  Request request;
  for (std::uint64_t* word : {&request.deadline_ns, &request.remaining_ns, &request.version,
                              &request.cache_index, &request.cache_value, &request.key_index,
                              &request.key_value, &request.offset, &request.size}) {
    *word = in.get<std::uint64_t>();
  }
  request.count = in.get<std::uint32_t>();
  const auto reserved = in.get<std::uint32_t>();
  const bool has_descriptors = words_per_descriptor(header.kind) != 0;
  if (!is_request(header.kind) || reserved != 0 || request.count > kMaxDescriptors ||
      (!has_descriptors && request.count != 0) ||
      header.body_bytes != body_of(header.kind, request.count) ||
      request.deadline_ns > kMaxRemainingNs || request.remaining_ns > kMaxRemainingNs ||
      request.size > kMaxLogBytes) {
    return std::nullopt;
  }
  return request;
}

std::optional<Reply> decode_outcome(std::span<const std::byte, kOutcomeBytes> bytes) {
  Reader in(bytes);
  const auto code = in.get<std::uint32_t>();
  if (code > static_cast<std::uint32_t>(Code::kCancelled)) {
    return std::nullopt;
  }
  Reply reply;
  reply.outcome.code = static_cast<Code>(code);
  reply.outcome.sys_errno = static_cast<std::int32_t>(in.get<std::uint32_t>());
  reply.outcome.index = static_cast<std::int64_t>(in.get<std::uint64_t>());
  reply.outcome.moved_bytes = in.get<std::uint64_t>();
  reply.value = in.get<std::uint64_t>();
  return reply;
}

void convert_words(std::span<std::uint64_t> words) { swap_all_unless_little(words); }
void convert_words(std::span<std::uint32_t> words) { swap_all_unless_little(words); }

}  // namespace ldd::wire
