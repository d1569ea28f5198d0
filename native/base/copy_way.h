// How a GPU's memory is copied: the option llm.GpuCopy.
#pragma once

namespace ldd {

enum class CopyWay : int {
  kAuto = 0,    // by the size of the descriptors
  kKernel = 1,  // by a kernel wherever one reaches both sides
  kEngine = 2,  // by the GPU's copy engines
};

}  // namespace ldd
