// Checks of every access, global and shared, and asynchronous copies that land when they are waited for.
#include "memory.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu.h"

namespace deployml::gpu::emulator {
namespace {

// ------------------------------------------------------------------------------------------------- global

struct Region {
  const char* begin;
  const char* end;
  bool writable;
  std::vector<uint32_t> written;  // a byte's launch, 0 for never
};

constexpr uint32_t kBefore = 1;  // launches count from 2

std::mutex one_at_a_time;
std::vector<Region> regions;
uint32_t current_launch = kBefore;

Region* region_of(const char* p, size_t bytes) {
  for (Region& region : regions)
    if (p >= region.begin && p + bytes <= region.end) return &region;
  return nullptr;
}

// ------------------------------------------------------------------------------------------------- shared

constexpr size_t kCell = 2;  // bytes; every element type is a multiple
constexpr int kNobody = -1, kMany = -2;

/// Who wrote and read two bytes of shared memory last, and between which barriers.
struct Cell {
  uint32_t written = 0, read = 0;            // epoch of the block, 0 for never
  uint32_t written_warp = 0, read_warp = 0;  // epoch of the warp
  int writer = kNobody, reader = kNobody, reader_warp = kNobody;
  bool pending = false;  // an asynchronous copy into it is under way
};

struct Copy {
  char* to;
  Chunk chunk;
};

struct Copies {
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

char* memory_begin = nullptr;
size_t memory_bytes = 0;
std::unique_ptr<char[]> storage;
std::vector<Cell> cells;
std::vector<uint32_t> warp_epochs;
std::vector<Copies> copies;
uint32_t epoch = 1;
int lanes = 32;

/// Whether this thread and another, whose access was at these epochs, are not ordered by a barrier.
bool unordered(uint32_t then, uint32_t warp_then, int other) {
  if (then != epoch || other == at.thread) return false;
  return other / lanes != at.thread / lanes || warp_then == warp_epochs[size_t(at.thread / lanes)];
}

void read_cell(Cell& cell, size_t offset) {
  if (cell.pending) fault("reads shared byte %zu while a copy into it is under way", offset);
  if (cell.written == 0) fault("reads shared byte %zu, which nobody wrote", offset);
  if (unordered(cell.written, cell.written_warp, cell.writer))
    fault("reads shared byte %zu, written by thread %d without a barrier between", offset, cell.writer);
  const int warp = at.thread / lanes;
  const uint32_t now = warp_epochs[size_t(warp)];
  if (cell.read != epoch) cell.reader = kNobody, cell.reader_warp = kNobody;
  const bool same_step = cell.reader_warp == warp && cell.read_warp == now;
  cell.reader = cell.reader == kNobody || cell.reader == at.thread ? at.thread : same_step ? kMany : at.thread;
  cell.reader_warp = cell.reader_warp == kNobody || cell.reader_warp == warp ? warp : kMany;
  cell.read = epoch, cell.read_warp = now;
}

void write_cell(Cell& cell, size_t offset) {
  if (cell.written != 0 && unordered(cell.written, cell.written_warp, cell.writer))
    fault("writes shared byte %zu, written by thread %d without a barrier between", offset, cell.writer);
  const int warp = at.thread / lanes;
  if (cell.read == epoch) {
    const bool other_warp = cell.reader_warp != warp;
    const bool other_lane = cell.read_warp == warp_epochs[size_t(warp)] && cell.reader != at.thread;
    if (other_warp || other_lane)
      fault("writes shared byte %zu, read by another thread without a barrier between", offset);
  }
  cell.written = epoch, cell.writer = at.thread, cell.written_warp = warp_epochs[size_t(warp)];
}

Cell* cells_of(const char* p, size_t bytes, size_t alignment) {
  if (p < memory_begin || p + bytes > memory_begin + memory_bytes)
    fault("accesses shared byte %td, the block has %zu", p - memory_begin, memory_bytes);
  const size_t offset = size_t(p - memory_begin);
  if (offset % alignment != 0) fault("accesses shared byte %zu with alignment %zu", offset, alignment);
  return &cells[offset / kCell];
}

void land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    Cell* cell = cells_of(copy.to, sizeof(Chunk), sizeof(Chunk));
    for (size_t i = 0; i < sizeof(Chunk) / kCell; ++i) cell[i].pending = false;
    access_shared(copy.to, sizeof(Chunk), sizeof(Chunk), true);
    std::memcpy(copy.to, &copy.chunk, sizeof(Chunk));
  }
}

}  // namespace

void declare_region(const void* p, size_t bytes, Access access) {
  if (p == nullptr || bytes == 0) return;
  const char* begin = static_cast<const char*>(p);
  const bool writable = access != Access::kRead;
  const uint32_t before = access == Access::kUpdate ? kBefore : 0;
  regions.push_back({begin, begin + bytes, writable, std::vector<uint32_t>(writable ? bytes : 0, before)});
}

Session::Session() { one_at_a_time.lock(); }

Session::~Session() {
  regions.clear();
  one_at_a_time.unlock();
}

void access_global(const void* p, size_t bytes, size_t alignment, bool write) {
  const char* begin = static_cast<const char*>(p);
  Region* region = region_of(begin, bytes);
  if (region == nullptr) fault("%s %zu bytes of global memory outside every tensor", write ? "writes" : "reads", bytes);
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fault("accesses global memory off its alignment of %zu", alignment);
  if (!region->writable) {
    if (write) fault("writes to an input");
    return;
  }
  for (size_t i = size_t(begin - region->begin), end = i + bytes; i < end; ++i) {
    uint32_t& written = region->written[i];
    if (write && written == current_launch) fault("writes byte %zu of an output again", i);
    if (!write && (written == 0 || written == current_launch))
      fault("reads byte %zu of an output that %s", i, written == 0 ? "nobody wrote" : "this launch wrote");
    if (write) written = current_launch;
  }
}

char* shared_memory() { return memory_begin; }

void access_shared(const char* p, size_t bytes, size_t alignment, bool write) {
  Cell* cell = cells_of(p, bytes, alignment);
  const size_t offset = size_t(p - memory_begin);
  for (size_t i = 0; i < bytes / kCell; ++i) {
    if (!write) {
      read_cell(cell[i], offset + i * kCell);
      continue;
    }
    if (cell[i].pending) fault("writes shared byte %zu while a copy into it is under way", offset + i * kCell);
    write_cell(cell[i], offset + i * kCell);
  }
}

void copy_chunk(char* to, const void* from, bool valid) {
  Copy copy{to, {}};
  if (valid) {
    access_global(from, sizeof(Chunk), sizeof(Chunk), false);
    std::memcpy(&copy.chunk, from, sizeof(Chunk));
  }
  access_shared(to, sizeof(Chunk), sizeof(Chunk), true);
  Cell* cell = cells_of(to, sizeof(Chunk), sizeof(Chunk));
  for (size_t i = 0; i < sizeof(Chunk) / kCell; ++i) cell[i].pending = true;
  copies[size_t(at.thread)].open.push_back(copy);
}

void copy_commit() {
  Copies& mine = copies[size_t(at.thread)];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

void copy_wait(int groups) {
  Copies& mine = copies[size_t(at.thread)];
  while (int(mine.groups.size()) > groups) {
    land(mine.groups.front());
    mine.groups.pop_front();
  }
}

namespace memory {

void next_launch() { ++current_launch; }

void next_block(size_t bytes, int warps, int warp) {
  const size_t wanted = bytes + 256;
  storage.reset(new char[wanted]);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(storage.get()) + 127) / 128 * 128;
  memory_begin = reinterpret_cast<char*>(begin), memory_bytes = bytes;
  std::memset(storage.get(), 0xff, wanted);  // NaN in every type, should a check ever be missing
  cells.assign(bytes / kCell, Cell{});
  warp_epochs.assign(size_t(warps), 1);
  copies.assign(size_t(warps) * size_t(warp), Copies{});
  lanes = warp, epoch = 1;
}

void next_epoch() { ++epoch; }

void next_warp_epoch(int warp) { ++warp_epochs[size_t(warp)]; }

void leave(int thread) {
  const Copies& mine = copies[size_t(thread)];
  const auto any = [](const std::vector<Copy>& group) { return !group.empty(); };
  if (any(mine.open) || std::any_of(mine.groups.begin(), mine.groups.end(), any))
    fault("leaves without waiting for its copies");
}

}  // namespace memory
}  // namespace deployml::gpu::emulator
