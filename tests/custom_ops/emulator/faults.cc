// Kernels with one fault each: what the emulator says to them. Prints "name: message" a line; "none" for the sound ones.
#include <cstdio>
#include <vector>

#include "gpu.h"

namespace {

using namespace deployml;

constexpr int kThreads = 64, kShared = 1024;

alignas(16) float memory[256];
float* const input = memory + 64;
float* const output = memory + 160;

void run(const char* name, const std::function<void()>& kernel, int threads = kThreads) {
  const gpu::emulator::Session session;
  gpu::emulator::declare_region(input, 64 * sizeof(float), gpu::emulator::Access::kRead);
  gpu::emulator::declare_region(output, 64 * sizeof(float), gpu::emulator::Access::kWrite);
  const char* message = gpu::emulator::run(1, threads, 32, kShared, kernel);
  std::printf("%s: %s\n", name, message == nullptr ? "none" : message);
}

char* word(int i) { return gpu::shared() + 4 * i; }
void put(int i) { gpu::shared_store(word(i), 1.0f); }
float get(int i) { return gpu::shared_load<float>(word(i)); }

void global_faults() {
  run("read in bounds", [] { gpu::load(input + gpu::thread()); });
  run("read past the end", [] { gpu::load(input + gpu::thread() + 1); });
  run("write past the end", [] { gpu::store(output + gpu::thread() + 1, 1.0f); });
  run("write to an input", [] { gpu::store(input + gpu::thread(), 1.0f); });
  run("write twice", [] { gpu::store(output + gpu::thread() / 2, 1.0f); });
  run("read of an unwritten output", [] { gpu::load(output + gpu::thread()); });
  run("read of the launch's own output", [] {
    gpu::store(output + gpu::thread(), 1.0f);
    gpu::load(output + gpu::thread());
  });
  run("unaligned read", [] { gpu::load(reinterpret_cast<const gpu::Chunk*>(input + gpu::thread() % 4)); });
}

void shared_faults() {
  run("exchange", [] {
    put(gpu::thread());
    gpu::sync_block();
    get(gpu::thread() ^ 40);
  });
  run("exchange without a barrier", [] {
    put(gpu::thread());
    get(gpu::thread() ^ 40);
  });
  run("overwriting what others read", [] {
    put(gpu::thread());
    gpu::sync_block();
    get(gpu::thread() ^ 40);
    put(gpu::thread());
  });
  run("exchange in a warp", [] {
    put(gpu::thread());
    gpu::sync_warp();
    get(gpu::thread() ^ 3);
  });
  run("exchange across warps with a warp barrier", [] {
    put(gpu::thread());
    gpu::sync_warp();
    get(gpu::thread() ^ 40);
  });
  run("two writers", [] { put(gpu::thread() / 2); });
  run("read of unwritten shared memory", [] { get(gpu::thread()); });
  run("shared memory out of bounds", [] { put(kShared / 4 - 32 + gpu::thread()); });
  run("unaligned shared access", [] { gpu::shared_store(gpu::shared() + gpu::thread() * 16 + 4, gpu::Chunk{}); }, 32);
}

void copy_faults() {
  const auto copy = [] { gpu::copy_chunk(gpu::shared() + gpu::thread() * 16, input + gpu::thread() % 16 * 4, true); };
  run("copy", [copy] {
    copy();
    gpu::copy_commit();
    gpu::copy_wait<0>();
    gpu::sync_block();
    get(4 * (gpu::thread() ^ 40));
  });
  run("copy read by its own thread", [copy] {
    copy();
    gpu::copy_commit();
    gpu::copy_wait<0>();
    get(4 * gpu::thread());
  });
  run("copy without waiting", [copy] {
    copy();
    gpu::copy_commit();
    gpu::copy_wait<1>();
    gpu::sync_block();
    get(4 * (gpu::thread() ^ 40));
  });
  run("copy without committing", [copy] {
    copy();
    gpu::copy_wait<0>();
    gpu::sync_block();
    get(4 * gpu::thread());
  });
  run("copy left behind", [copy] {
    copy();
    gpu::copy_commit();
  });
  run("copy waited for, without a barrier", [copy] {
    copy();
    gpu::copy_commit();
    gpu::copy_wait<0>();
    get(4 * (gpu::thread() ^ 1));
  });
}

void warp_faults() {
  run("shuffle", [] { gpu::shuffle_xor<32>(1.0f, 1); });
  run("shuffle in half a warp", [] {
    if (gpu::thread() % 32 < 16) gpu::shuffle_xor<32>(1.0f, 1);
  });
  run("lanes at different operations", [] {
    uint32_t r[4], zeros[4] = {};
    float c[4] = {};
    if (gpu::thread() % 32 == 5) {
      gpu::mma<gpu::Half>(c[0], c[1], c[2], c[3], zeros, 0, 0);
    } else {
      gpu::load_matrix(r, gpu::shared());
    }
  });
  run("shuffle from beyond the warp", [] { gpu::shuffle<32>(1.0f, gpu::thread() + 1); });
  run("barrier some do not reach", [] {
    if (gpu::thread() != 7) gpu::sync_block();
  });
  run("operation of another warp size", [] { gpu::shuffle_xor<64>(1.0f, 1); });
}

}  // namespace

int main() {
  global_faults();
  shared_faults();
  copy_faults();
  warp_faults();
}
