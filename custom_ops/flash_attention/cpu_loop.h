// The seam between cpu.cc (dispatch, threads) and the loops compiled once per instruction set.
#pragma once

#include "attention.h"

namespace deployml {

/// One unit of work: query rows [begin, end) of all heads that share key-value head `kv_head` of batch `batch`.
struct CpuTask {
  int64_t batch;
  int64_t kv_head;
  int64_t begin;
  int64_t end;
};

/// Rows handled together; tasks begin at multiples of it, so that results do not depend on how work is split.
inline constexpr int64_t kRowBlock = 24;

/// Up to so many queries, keys and values are read where they lie and not packed.
inline constexpr int64_t kDirectRows = 4;

/// Memory of the calling thread, 64-byte aligned, valid until the next call from it; nullptr when there is none.
using ThreadScratch = void* (*)(size_t bytes);

/// The loop of one instruction set. `run` returns false when memory ran out.
struct CpuLoop {
  const char* name;
  bool (*run)(const AttentionCall& call, const CpuTask& task, ThreadScratch scratch);
};

namespace avx512_bf16 {  // bfloat16 of whole pairs, more than kDirectRows queries
extern const CpuLoop kLoop;
}
namespace avx512 {
extern const CpuLoop kLoop;
}
namespace avx2 {
extern const CpuLoop kLoop;
}
namespace portable {
extern const CpuLoop kLoop;
}

}  // namespace deployml
