// The emulator's shadow of global and shared memory: who touched what, and when.
#pragma once

#include <cstddef>

namespace deployml::gpu::emulator::memory {

/// A new launch: what earlier ones wrote may be read.
void next_launch();
/// A new block with `bytes` of shared memory, all of it never written.
void next_block(size_t bytes, int warps, int warp);
/// All threads of the block have met.
void next_epoch();
/// All lanes of one warp have met.
void next_warp_epoch(int warp);
/// A thread ends: it must have waited for its copies.
void leave(int thread);

}  // namespace deployml::gpu::emulator::memory
