// Kernels of the library: copies of lists of descriptors, and CRC-32C of segments. `make ptx` compiles
// them to kernels.ptx, which is committed; no build needs a CUDA compiler.
//
// The structs and names below are known to native/cuda and to tests/fake_cuda/modules.cc.

typedef unsigned int Word;
typedef unsigned long long Bytes;

struct CopyItem {
  Bytes to;
  Bytes from;
  Bytes size;
};

struct Segment {
  Bytes address;
  Bytes size;
};

enum : Word {
  kPolynomial = 0x82F63B78u,  // of CRC-32C, bit-reversed
  kOne = 0x80000000u,         // the polynomial 1
  kByte = 0x00800000u,        // x^8: what one more byte multiplies by
  kThreads = 256u             // of a block of ldd_crc32c_list
};

#ifdef __CUDACC_RTC__
#define LDD_NOT_UNROLLED _Pragma("unroll 1")
#else
#define LDD_NOT_UNROLLED
#endif

// The product of two polynomials modulo that of CRC-32C.
static __device__ Word multiply(Word a, Word b) {
  Word product = 0;
  LDD_NOT_UNROLLED
  for (Word bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) {
      product ^= b;
    }
    b = (b >> 1) ^ ((b & 1u) != 0 ? kPolynomial : 0u);
  }
  return product;
}

// What `size` more bytes multiply a remainder by.
static __device__ Word power(Bytes size) {
  Word result = kOne;
  Word square = kByte;
  LDD_NOT_UNROLLED
  for (; size != 0; size >>= 1) {
    if ((size & 1u) != 0) {
      result = multiply(result, square);
    }
    square = multiply(square, square);
  }
  return result;
}

// Copies each item; gather and scatter are lists with one side contiguous. Blocks take items in turn.
extern "C" __global__ void ldd_copy_list(const CopyItem* items, Word count) {
  for (Word i = blockIdx.x; i < count; i += gridDim.x) {
    const CopyItem item = items[i];
    Bytes done = 0;
    if (((item.to | item.from) & 15u) == 0) {
      const uint4* const from = reinterpret_cast<const uint4*>(item.from);
      uint4* const to = reinterpret_cast<uint4*>(item.to);
      const Bytes quads = item.size / sizeof(uint4);
      LDD_NOT_UNROLLED
      for (Bytes at = threadIdx.x; at < quads; at += blockDim.x) {
        to[at] = from[at];
      }
      done = quads * sizeof(uint4);
    }
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(item.from);
    unsigned char* const to = reinterpret_cast<unsigned char*>(item.to);
    LDD_NOT_UNROLLED
    for (Bytes at = done + threadIdx.x; at < item.size; at += blockDim.x) {
      to[at] = from[at];
    }
  }
}

// sums[i] becomes the CRC-32C of segment i. Blocks of kThreads threads take segments in turn; each
// thread computes the remainder of its share, shifted by the bytes behind it, and they are added.
extern "C" __global__ void ldd_crc32c_list(const Segment* segments, Word count, Word* sums) {
  __shared__ Word table[256];
  __shared__ Word sum;
  Word entry = threadIdx.x;
  LDD_NOT_UNROLLED
  for (int bit = 0; bit < 8; ++bit) {
    entry = (entry >> 1) ^ ((entry & 1u) != 0 ? kPolynomial : 0u);
  }
  table[threadIdx.x] = entry;
  for (Word i = blockIdx.x; i < count; i += gridDim.x) {
    if (threadIdx.x == 0) {
      sum = 0;
    }
    __syncthreads();
    const Segment segment = segments[i];
    const Bytes share = (segment.size + kThreads - 1) / kThreads;
    const Bytes begin = share * threadIdx.x < segment.size ? share * threadIdx.x : segment.size;
    const Bytes end = begin + share < segment.size ? begin + share : segment.size;
    const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(segment.address);
    Word remainder = threadIdx.x == 0 ? ~0u : 0u;
    LDD_NOT_UNROLLED
    for (Bytes at = begin; at < end; ++at) {
      remainder = (remainder >> 8) ^ table[(remainder ^ bytes[at]) & 255u];
    }
    atomicXor(&sum, multiply(remainder, power(segment.size - end)));
    __syncthreads();
    if (threadIdx.x == 0) {
      sums[i] = ~sum;
    }
    __syncthreads();
  }
}
