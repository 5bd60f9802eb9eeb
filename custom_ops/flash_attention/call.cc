// One call of the operator: reads every input, checks it against the others, makes the outputs, launches the backend.
#include <array>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "ort_tensor.h"
#include "signature.h"

namespace deployml {
namespace {

class Call {
 public:
  Call(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), api_(kernel.api), context_(context), signature_(kernel.op->signature) {}
  ~Call() { give_back(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void run() {
    read_inputs();
    call_.element = kernel_.op->element;
    set_sizes();
    set_optional();
    set_outputs();
    Runtime runtime{this, parallel_for, stream, allocate};
    const char* message = kernel_.op->backend->launch(call_, runtime);
    check(pending_);
    if (message != nullptr) fail(ort::kFail, "%s", message);
  }

 private:
  void read_inputs() {
    size_t count = 0;
    check(ort::KernelContextGetInputCount::call(api_, context_, &count));
    if (count != signature_.inputs)
      fail(ort::kInvalidArgument, "has %zu inputs, its name asks for %zu", count, signature_.inputs);
    for (size_t i = 0; i < count; ++i) {
      const size_t role = size_t(signature_.roles[i]);
      inputs_[role] = read_input(api_, context_, i, kRoleNames[role]);
    }
    check(ort::KernelContextGetInput::call(api_, context_, 0, &query_));
  }

  const Input& input(Role role) const { return inputs_[size_t(role)]; }

  [[noreturn]] void refuse(Role role, const char* expected) const {
    fail(ort::kInvalidArgument, "input %s has shape %s, expected %s", kRoleNames[size_t(role)],
         ShapeText(input(role).dims).text, expected);
  }

  /// Reads (B, rows, heads, dim) of query, key or value and its strides.
  View view_of(Role role, int64_t heads, int64_t* batch, int64_t* rows, int64_t* dim) const {
    const Input& x = input(role);
    if (signature_.has(kBnsh)) {
      if (x.dims.size() != 4 || x.dims[1] != heads) {
        char expected[96];
        std::snprintf(expected, sizeof expected, "(batch, %lld heads, length, head size)", (long long)heads);
        refuse(role, expected);
      }
      *batch = x.dims[0], *rows = x.dims[2], *dim = x.dims[3];
      return {x.data, heads * *rows * *dim, *rows * *dim, *dim, 1};
    }
    if (x.dims.size() != 3 || x.dims[2] % heads != 0) {
      char expected[96];
      std::snprintf(expected, sizeof expected, "(batch, length, a multiple of %lld heads)", (long long)heads);
      refuse(role, expected);
    }
    *batch = x.dims[0], *rows = x.dims[1], *dim = x.dims[2] / heads;
    return {x.data, *rows * x.dims[2], *dim, x.dims[2], 1};
  }

  void same(Role role, const char* what, int64_t found, int64_t expected) const {
    if (found != expected)
      fail(ort::kInvalidArgument, "input %s of shape %s has %s %lld, expected %lld", kRoleNames[size_t(role)],
           ShapeText(input(role).dims).text, what, (long long)found, (long long)expected);
  }

  /// Query, key and value as parts of the rows of one tensor.
  void set_packed() {
    const Input& x = input(Role::kPacked);
    const int64_t all = call_.heads + 2 * call_.kv_heads;
    if (x.dims.size() != 3 || x.dims[2] % all != 0) {
      char expected[96];
      std::snprintf(expected, sizeof expected, "(batch, length, a multiple of %lld heads)", (long long)all);
      refuse(Role::kPacked, expected);
    }
    const int64_t width = x.dims[2], dim = width / all, element = bytes_of(call_.element);
    call_.batch = x.dims[0], call_.queries = call_.keys = x.dims[1];
    call_.head_dim = call_.value_dim = dim;
    const auto part = [&](int64_t first_head) -> View {
      return {static_cast<const char*>(x.data) + first_head * dim * element, x.dims[1] * width, dim, width, 1};
    };
    call_.query = part(0), call_.key = part(call_.heads), call_.value = part(call_.heads + call_.kv_heads);
    if (dim < 1 || dim > 1024) refuse(Role::kPacked, "a head size of 1 to 1024");
  }

  void set_apart() {
    const Attributes& a = kernel_.attributes;
    int64_t batch = 0, rows = 0, dim = 0;
    call_.query = view_of(Role::kQuery, a.num_heads, &call_.batch, &call_.queries, &call_.head_dim);
    call_.key = view_of(Role::kKey, a.kv_heads, &batch, &call_.keys, &dim);
    same(Role::kKey, "batch", batch, call_.batch);
    same(Role::kKey, "head size", dim, call_.head_dim);
    call_.value = view_of(Role::kValue, a.kv_heads, &batch, &rows, &call_.value_dim);
    same(Role::kValue, "batch", batch, call_.batch);
    same(Role::kValue, "length", rows, call_.keys);
    if (call_.head_dim < 1 || call_.head_dim > 1024) refuse(Role::kQuery, "a head size of 1 to 1024");
    if (call_.value_dim < 1 || call_.value_dim > 1024) refuse(Role::kValue, "a head size of 1 to 1024");
    if (signature_.has_present()) set_past();
  }

  void set_sizes() {
    const Attributes& a = kernel_.attributes;
    call_.heads = a.num_heads, call_.kv_heads = a.kv_heads;
    if (signature_.has(kPacked)) {
      set_packed();
    } else {
      set_apart();
    }
    call_.scale = a.scale != 0.0f ? a.scale : 1.0f / std::sqrt(float(call_.head_dim));
    call_.softcap = a.softcap;
    call_.window_left = a.window_left, call_.window_right = a.window_right;
    call_.lower_right = a.lower_right != 0;
  }

  void set_past() {
    const auto past_of = [this](Role role, int64_t dim) {
      const Input& x = input(role);
      if (x.dims.size() != 4 || x.dims[0] != call_.batch || x.dims[1] != call_.kv_heads || x.dims[3] != dim) {
        char expected[128];
        std::snprintf(expected, sizeof expected, "(%lld, %lld, past, %lld)", (long long)call_.batch,
                      (long long)call_.kv_heads, (long long)dim);
        refuse(role, expected);
      }
      return x.dims[2];
    };
    call_.past = past_of(Role::kPastKey, call_.head_dim);
    same(Role::kPastValue, "length", past_of(Role::kPastValue, call_.value_dim), call_.past);
    call_.past_key = input(Role::kPastKey).data;
    call_.past_value = input(Role::kPastValue).data;
    call_.fresh = call_.keys;
    call_.cache = signature_.has(kCache);
    call_.keys = call_.cache ? call_.past : call_.keys + call_.past;
  }

  /// Strides of a tensor that broadcasts to (batch, heads, queries, keys).
  View broadcast(Role role) const {
    const Input& x = input(role);
    const int64_t full[4] = {call_.batch, call_.heads, call_.queries, call_.keys};
    int64_t stride[4] = {0, 0, 0, 0}, step = 1;
    const size_t rank = x.dims.size();
    bool good = rank <= 4;
    for (size_t i = 0; good && i < rank; ++i) {
      const size_t axis = 3 - i;
      const int64_t dim = x.dims[rank - 1 - i];
      good = dim == full[axis] || dim == 1;
      stride[axis] = dim == 1 ? 0 : step;
      step *= dim;
    }
    if (!good) {
      char expected[160];
      std::snprintf(expected, sizeof expected, "one that broadcasts to (%lld, %lld, %lld, %lld)",
                    (long long)full[0], (long long)full[1], (long long)full[2], (long long)full[3]);
      refuse(role, expected);
    }
    return {x.data, stride[0], stride[1], stride[2], stride[3]};
  }

  void set_optional() {
    if (signature_.has(kLengths)) set_lengths();
    if (signature_.has(kMask)) call_.mask = broadcast(Role::kMask);
    if (signature_.has(kBias)) call_.bias = broadcast(Role::kBias);
    if (signature_.has(kSlopes)) call_.slopes = per_head(Role::kSlopes);
    if (signature_.has(kTable)) set_table();
    if (signature_.has(kSink)) call_.sink = per_head(Role::kSink);
  }

  void set_table() {
    const Input& x = input(Role::kTable);
    const bool good = x.dims.size() == 2 && (x.dims[0] == 1 || x.dims[0] == call_.heads) && x.dims[1] % 2 == 1;
    if (!good) {
      char expected[96];
      std::snprintf(expected, sizeof expected, "(%lld or 1, an odd number of distances)", (long long)call_.heads);
      refuse(Role::kTable, expected);
    }
    call_.table = x.data, call_.table_size = x.dims[1];
    call_.table_head = x.dims[0] == 1 ? 0 : x.dims[1];
  }

  const void* per_head(Role role) const {
    const Input& x = input(role);
    if (x.dims.size() != 1 || x.dims[0] != call_.heads) {
      char expected[64];
      std::snprintf(expected, sizeof expected, "(%lld,)", (long long)call_.heads);
      refuse(role, expected);
    }
    return x.data;
  }

  void set_lengths() {
    const Input& x = input(Role::kLengths);
    if (x.dims.size() != 1 || x.dims[0] != call_.batch) {
      char expected[64];
      std::snprintf(expected, sizeof expected, "(%lld,)", (long long)call_.batch);
      refuse(Role::kLengths, expected);
    }
    call_.lengths = static_cast<const int32_t*>(x.data);
    if (kernel_.op->backend->device) return;  // the kernel clamps instead
    for (int64_t b = 0; b < call_.batch; ++b)
      if (call_.lengths[b] < 0 || call_.lengths[b] > call_.keys)
        fail(ort::kInvalidArgument, "input key_lengths[%lld] is %d, allowed is 0 to %lld", (long long)b,
             call_.lengths[b], (long long)call_.keys);
  }

  void* output(size_t index, std::initializer_list<int64_t> dims) {
    return make_output(api_, context_, index, dims.begin(), dims.size());
  }

  void set_outputs() {
    const int64_t b = call_.batch, n = call_.heads, s = call_.queries, v = call_.value_dim;
    if (signature_.has(kBnsh)) {
      call_.output = {output(0, {b, n, s, v}), n * s * v, s * v, v, 1};
    } else {
      call_.output = {output(0, {b, s, n * v}), s * n * v, v, n * v, 1};
    }
    const int64_t k = call_.keys;
    if (signature_.has(kWeights)) call_.weights = {output(1, {b, n, s, k}), n * s * k, s * k, k, 1};
    if (!signature_.has_present()) return;
    call_.present_key = output(1, {b, call_.kv_heads, call_.keys, call_.head_dim});
    call_.present_value = output(2, {b, call_.kv_heads, call_.keys, v});
  }

  static void parallel_for(void* state, int64_t total, void (*body)(void*, size_t), void* user) {
    const Call& self = *static_cast<Call*>(state);
    deployml::parallel_for(self.api_, self.context_, size_t(total), body, user);
  }

  static void* stream(void* state) {
    Call& self = *static_cast<Call*>(state);
    void* stream = nullptr;
    self.pending_ = ort::KernelContextGetGpuComputeStream::call(self.api_, self.context_, &stream);
    return stream;
  }

  /// Workspace from the allocator of the memory the query is in: the arena of the provider. Work that was started on
  /// the call's stream may still use it after it went back, as everything else that takes it runs on that stream.
  static void* allocate(void* state, size_t bytes) {
    Call& self = *static_cast<Call*>(state);
    const OrtMemoryInfo* memory = nullptr;
    void* found = nullptr;
    self.pending_ = ort::GetTensorMemoryInfo::call(self.api_, self.query_, &memory);
    if (self.pending_ == nullptr && self.allocator_ == nullptr)
      self.pending_ = ort::KernelContextGetAllocator::call(self.api_, self.context_, memory, &self.allocator_);
    if (self.pending_ == nullptr)
      self.pending_ = ort::AllocatorAlloc::call(self.api_, self.allocator_, bytes, &found);
    if (found != nullptr) self.workspace_.push_back(found);
    return found;
  }

  void give_back() noexcept {
    for (void* memory : workspace_)
      if (OrtStatus* status = ort::AllocatorFree::call(api_, allocator_, memory)) ort::ReleaseStatus::call(api_, status);
    if (allocator_ != nullptr) ort::ReleaseAllocator::call(api_, allocator_);
  }

  const Kernel& kernel_;
  const OrtApi* api_;
  OrtKernelContext* context_;
  const Signature& signature_;
  std::array<Input, kRoles> inputs_{};
  AttentionCall call_;
  OrtStatus* pending_ = nullptr;
  const OrtValue* query_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  std::vector<void*> workspace_;
};

}  // namespace

void run_call(const Kernel& kernel, OrtKernelContext* context) { Call(kernel, context).run(); }

}  // namespace deployml
