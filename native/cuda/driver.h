// The functions of the CUDA driver, found in libcuda.so.1 at first use. Nothing is linked, and a
// process that uses no GPU loads nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/types.h"

namespace ldd::cuda {

// Each member has the name of the driver's function without "cu". All are callable from any thread;
// most work on the context that is current on the calling thread.
struct Driver {
  Result (*init)(unsigned flags) = nullptr;
  Result (*get_error_name)(Result result, const char** name) = nullptr;
  Result (*driver_get_version)(int* version) = nullptr;

  Result (*device_get_count)(int* count) = nullptr;
  Result (*device_get_uuid)(Uuid* uuid, int device) = nullptr;
  Result (*device_primary_ctx_retain)(ContextHandle* context, int device) = nullptr;
  Result (*device_get_attribute)(int* value, DeviceFact fact, int device) = nullptr;
  Result (*device_can_access_peer)(int* can, int device, int peer) = nullptr;
  Result (*ctx_push_current)(ContextHandle context) = nullptr;
  Result (*ctx_pop_current)(ContextHandle* context) = nullptr;

  Result (*pointer_get_attribute)(void* value, PointerFact fact, Address address) = nullptr;
  Result (*mem_get_address_range)(Address* begin, std::size_t* size, Address address) = nullptr;
  Result (*mem_get_info)(std::size_t* free, std::size_t* total) = nullptr;
  Result (*mem_host_alloc)(void** memory, std::size_t size, unsigned flags) = nullptr;
  Result (*mem_free_host)(void* memory) = nullptr;
  Result (*mem_host_register)(void* memory, std::size_t size, unsigned flags) = nullptr;
  Result (*mem_host_unregister)(void* memory) = nullptr;

  Result (*stream_create)(StreamHandle* stream, unsigned flags) = nullptr;
  Result (*stream_destroy)(StreamHandle stream) = nullptr;
  Result (*stream_query)(StreamHandle stream) = nullptr;
  Result (*stream_get_ctx)(StreamHandle stream, ContextHandle* context) = nullptr;
  Result (*memcpy_async)(Address to, Address from, std::size_t size, StreamHandle stream) = nullptr;
  // As of CUDA 12.8; null: this driver is older. Its copies run in any order.
  Result (*memcpy_batch_async)(Address* to, Address* from, std::size_t* sizes, std::size_t count,
                               CopyAttributes* attributes, std::size_t* first_copies,
                               std::size_t attribute_count, std::size_t* failed,
                               StreamHandle stream) = nullptr;

  Result (*event_create)(EventHandle* event, unsigned flags) = nullptr;
  Result (*event_destroy)(EventHandle event) = nullptr;
  Result (*event_record)(EventHandle event, StreamHandle stream) = nullptr;
  Result (*event_query)(EventHandle event) = nullptr;

  Result (*module_load_data)(ModuleHandle* module, const void* image) = nullptr;
  Result (*module_unload)(ModuleHandle module) = nullptr;
  Result (*module_get_function)(FunctionHandle* function, ModuleHandle module,
                                const char* name) = nullptr;
  Result (*launch_kernel)(FunctionHandle function, unsigned grid_x, unsigned grid_y,
                          unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared_bytes, StreamHandle stream, void** arguments,
                          void** extra) = nullptr;

  Result (*ipc_get_mem_handle)(IpcHandle* handle, Address address) = nullptr;
  Result (*ipc_open_mem_handle)(Address* address, IpcHandle handle, unsigned flags) = nullptr;
  Result (*ipc_close_mem_handle)(Address address) = nullptr;

  Result (*mem_get_granularity)(std::size_t* size, const Properties* properties,
                                int option) = nullptr;
  Result (*mem_address_reserve)(Address* address, std::size_t size, std::size_t alignment,
                                Address wanted, std::uint64_t flags) = nullptr;
  Result (*mem_address_free)(Address address, std::size_t size) = nullptr;
  Result (*mem_create)(MemoryHandle* handle, std::size_t size, const Properties* properties,
                       std::uint64_t flags) = nullptr;
  Result (*mem_release)(MemoryHandle handle) = nullptr;
  Result (*mem_map)(Address address, std::size_t size, std::size_t offset, MemoryHandle handle,
                    std::uint64_t flags) = nullptr;
  Result (*mem_unmap)(Address address, std::size_t size) = nullptr;
  Result (*mem_set_access)(Address address, std::size_t size, const Access* access,
                           std::size_t count) = nullptr;
  Result (*mem_retain_handle)(MemoryHandle* handle, void* address) = nullptr;
  Result (*mem_export)(void* shareable, MemoryHandle handle, int type,
                       std::uint64_t flags) = nullptr;
  Result (*mem_import)(MemoryHandle* handle, void* shareable, int type) = nullptr;
};

struct Loaded {
  const Driver* driver = nullptr;  // null: this process has none
  std::string problem;             // why; names the function and the driver's error
};

// Loads and initializes the driver. After a failure the next call tries again.
Loaded load_driver();
// The driver, if this process has loaded libcuda.so.1 already. Loads and initializes nothing.
Loaded present_driver();

// "cuMemcpyAsync failed with 214 (CUDA_ERROR_ECC_UNCORRECTABLE)".
std::string describe(const Driver& driver, const char* function, Result result);

}  // namespace ldd::cuda
