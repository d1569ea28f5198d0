// Copies whose stores bypass the caches, for transfers larger than the caches.
#pragma once

#include <cstddef>

namespace ldd {

// Like memcpy; other threads see the bytes after finish_streaming() on this thread.
void streaming_copy(void* destination, const void* source, std::size_t size_bytes);
void finish_streaming();

}  // namespace ldd
