// The entry point of the library: makes the domain of its operators and hands it to onnxruntime.
#include "registration.h"

#include <map>
#include <mutex>

#include "ort_status.h"

namespace deployml {
namespace {

constexpr char kDomain[] = "deployml";

const OrtApi* g_api = nullptr;  // one table for the whole process

/// The operators of some names and their domain. Sessions keep pointers into it, so it is never freed.
struct Registered {
  Operators operators;
  OrtCustomOpDomain* domain = nullptr;
};

Registered* make_registered(const OrtApi* api, const Names& names) {
  auto made = std::make_unique<Registered>();
  collect_attention(names, &made->operators);
  collect_experts(names, &made->operators);
#if !defined(DEPLOYML_EMULATED)  // the emulator's library holds no CPU kernels
  collect_normalization(names, &made->operators);
#endif
  check(ort::CreateCustomOpDomain::call(api, kDomain, &made->domain));
  for (const auto& op : made->operators.all) check(ort::CustomOpDomainAdd::call(api, made->domain, op.get()));
  return made.release();
}

/// Made once for each list of names and shared by all sessions of the process.
OrtCustomOpDomain* shared_domain(const OrtApi* api, const std::string& names) {
  static std::mutex mutex;
  static auto& all = *new std::map<std::string, Registered*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Registered*& found = all[names];
  if (found == nullptr) found = make_registered(api, Names{names});
  return found->domain;
}

thread_local std::string g_only;  // what the next registration of this thread is limited to

}  // namespace

const OrtApi* interface() { return g_api; }

}  // namespace deployml

/// The entry point onnxruntime calls when the library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return nullptr;  // older than 1.17: there is no table to report an error with
  deployml::g_api = api;
  return deployml::guarded(api, "*", [&] {
    OrtCustomOpDomain* domain = deployml::shared_domain(api, deployml::g_only);
    deployml::check(ort::AddCustomOpDomain::call(api, options, domain));
  });
}

/// Limits what this thread registers from now on to a comma list of names; null or "" lifts the limit.
///
/// onnxruntime makes a schema of every name for every session: some 45 ms for all of them, which a program that opens
/// many sessions and knows its models can save.
extern "C" __attribute__((visibility("default"))) void deployml_register_only(const char* names) {
  deployml::g_only = names == nullptr ? "" : names;
}
