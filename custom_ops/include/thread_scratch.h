// Memory that a thread keeps for itself from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace deployml {

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};

/// Grows with the largest request of its thread and goes with the thread; nullptr where there is no memory.
inline void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<void, FreeMemory> memory;
  thread_local size_t capacity = 0;
  if (bytes <= capacity) return memory.get();
  const size_t wanted = (bytes + 4095) / 4096 * 4096;
  memory.reset(std::aligned_alloc(64, wanted));
  capacity = memory ? wanted : 0;
  return memory.get();
}

}  // namespace deployml
