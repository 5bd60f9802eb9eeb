// Runs the threads of a block as fibers: each runs until it waits, the scheduler turns to the next.
#include "gpu.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "memory.h"

namespace deployml::gpu::emulator {

Position at;

namespace {

constexpr size_t kStack = 128 << 10;

enum class State { kReady, kAtBarrier, kAtWarpBarrier, kAtCollective, kDone };
constexpr const char* kStateNames[] = {"runs", "waits at a block barrier", "waits at a warp barrier",
                                       "waits at a warp operation", "has left"};

struct Fiber {
  State state = State::kReady;
  bool started = false;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  Op op{};
  void* operands = nullptr;
};

struct Fault {
  std::string text;
};

std::vector<Fiber> fibers;
const std::function<void()>* body = nullptr;
jmp_buf scheduler;
ucontext_t returned;
std::string problem;
int fibers_in_use = 0, warp_size = 32;

std::string place() {
  return "block " + std::to_string(at.block) + ", thread " + std::to_string(at.thread);
}

void entry() {
  try {
    (*body)();
  } catch (const Fault& fault) {
    problem = place() + ": " + fault.text;
  }
  if (problem.empty()) {
    try {
      memory::leave(at.thread);
    } catch (const Fault& fault) {
      problem = place() + ": " + fault.text;
    }
  }
  fibers[size_t(at.thread)].state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(int thread) {
  at.thread = thread;
  Fiber& fiber = fibers[size_t(thread)];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
  swapcontext(&returned, &context);
}

void wait(State state) {
  Fiber& fiber = fibers[size_t(at.thread)];
  fiber.state = state;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

/// Whether all of [first, first + count) are in this state.
bool all_at(int first, int count, State state) {
  return std::all_of(fibers.begin() + first, fibers.begin() + first + count,
                     [state](const Fiber& fiber) { return fiber.state == state; });
}

void release(int first, int count) {
  for (int i = first; i < first + count; ++i) fibers[size_t(i)].state = State::kReady;
}

std::string stuck() {
  int counts[5] = {};
  for (int i = 0; i < fibers_in_use; ++i) ++counts[int(fibers[size_t(i)].state)];
  std::string text = "threads of block " + std::to_string(at.block) + " wait for each other:";
  for (int s = 1; s < 5; ++s)
    if (counts[s] > 0) text += " " + std::to_string(counts[s]) + " " + kStateNames[s] + ";";
  text.pop_back();
  return text;
}

void run_block(std::mt19937& random) {
  std::vector<int> order(static_cast<size_t>(fibers_in_use));
  std::iota(order.begin(), order.end(), 0);
  for (int i = 0; i < fibers_in_use; ++i) {
    Fiber& fiber = fibers[size_t(i)];
    fiber.state = State::kReady, fiber.started = false;
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  }
  int left = fibers_in_use;
  while (left > 0 && problem.empty()) {
    // Warps in any order, and the lanes of a warp in any order too.
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (const int thread : order) {
      if (fibers[size_t(thread)].state != State::kReady) continue;
      moved = true;
      resume(thread);
      if (!problem.empty()) return;
      left -= fibers[size_t(thread)].state == State::kDone ? 1 : 0;
    }
    if (!moved) problem = stuck();
  }
}

}  // namespace

void fault(const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Fault{text};
}

void barrier() {
  // A block that some threads have left cannot meet any more; the scheduler reports it.
  fibers[size_t(at.thread)].state = State::kAtBarrier;
  if (all_at(0, fibers_in_use, State::kAtBarrier)) {
    memory::next_epoch();
    release(0, fibers_in_use);
    return;
  }
  wait(State::kAtBarrier);
}

void warp_barrier() {
  const int first = at.thread / warp_size * warp_size;
  fibers[size_t(at.thread)].state = State::kAtWarpBarrier;
  if (all_at(first, warp_size, State::kAtWarpBarrier)) {
    memory::next_warp_epoch(first / warp_size);
    release(first, warp_size);
    return;
  }
  wait(State::kAtWarpBarrier);
}

void collective(Op op, int warp, void* operands, void (*run)(void** lanes, int warp)) {
  if (warp != warp_size) fault("an operation for warps of %d on a device of %d", warp, warp_size);
  const int first = at.thread / warp * warp;
  Fiber& me = fibers[size_t(at.thread)];
  me.state = State::kAtCollective, me.op = op, me.operands = operands;
  if (!all_at(first, warp, State::kAtCollective)) return wait(State::kAtCollective);
  void* lanes[64];
  for (int i = 0; i < warp; ++i) {
    const Fiber& lane = fibers[size_t(first + i)];
    if (lane.op != op) fault("lane %d is at warp operation %d, this one at %d", i, int(lane.op), int(op));
    lanes[i] = lane.operands;
  }
  run(lanes, warp);
  release(first, warp);
}

const char* run(int64_t blocks, int threads, int warp, size_t shared, const std::function<void()>& kernel) {
  problem.clear();
  if (threads % warp != 0 || threads > 1024) problem = "a block of " + std::to_string(threads) + " threads";
  if (shared > size_t(device().shared_limit)) problem = std::to_string(shared) + " bytes of shared memory";
  if (!problem.empty()) return problem.c_str();
  fibers_in_use = threads, warp_size = warp, body = &kernel;
  if (fibers.size() < size_t(threads)) fibers.resize(size_t(threads));
  const char* seed = std::getenv("DEPLOYML_EMULATED_SEED");
  std::mt19937 random(seed != nullptr ? unsigned(std::atoi(seed)) : 1u);
  memory::next_launch();
  for (int64_t block = 0; block < blocks && problem.empty(); ++block) {
    at = {0, threads, block};
    memory::next_block(shared, threads / warp, warp);
    run_block(random);
  }
  return problem.empty() ? nullptr : problem.c_str();
}

Device device() {
  const char* kind = std::getenv("DEPLOYML_EMULATED_DEVICE");
  const char* count = std::getenv("DEPLOYML_EMULATED_MULTIPROCESSORS");
  const std::string name = kind != nullptr ? kind : "nvidia";
  Device found;
  found.multiprocessors = count != nullptr ? std::atoi(count) : 1;
  found.warp = name == "cdna" ? 64 : 32;
  // The least that any device the kernels are for has: compute capability 8.6, and all of AMD's.
  found.shared_limit = name == "nvidia" ? 99 << 10 : 64 << 10;
  found.matrix = name == "nvidia" ? Matrix::kMma : name == "cdna" ? Matrix::kMfma : Matrix::kNone;
  return found;
}

}  // namespace deployml::gpu::emulator
