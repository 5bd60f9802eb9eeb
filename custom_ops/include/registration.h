// What the library's entry point and the operators' folders share: which names are wanted, and the operators made.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "element.h"
#include "ort_abi.h"

namespace deployml {

/// The names a program asks for: a comma list; every name is in the empty one.
struct Names {
  std::string list;

  bool hold(const char* name) const {
    if (list.empty()) return true;
    const std::string padded = "," + list + ",";
    return padded.find("," + std::string(name) + ",") != std::string::npos;
  }
};

/// The operators of a registration, each of its folder's own type.
struct Operators {
  std::vector<std::shared_ptr<const OrtCustomOp>> all;

  template <typename Operator>
  void add(const Operator& op) {
    all.push_back(std::make_shared<const Operator>(op));
  }
};

inline int ort_type(Element element) {
  if (element == Element::kFloat16) return ort::kFloat16;
  return element == Element::kBFloat16 ? ort::kBFloat16 : ort::kFloat;
}

/// An operator whose inputs and outputs are all required; names, types and callbacks are still to be set.
inline OrtCustomOp blank_operator() {
  OrtCustomOp op{};
  op.version = ort::kApiVersion;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return int(ort::kRequired); };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return int(ort::kRequired); };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
  return op;
}

/// onnxruntime's table of functions; there once a library was registered. Shape inference has no other way to it.
const OrtApi* interface();

/// Add the operators of a folder whose names are wanted.
void collect_attention(const Names& names, Operators* found);      // flash_attention/ort.cc
void collect_normalization(const Names& names, Operators* found);  // skip_normalization/ort.cc
void collect_experts(const Names& names, Operators* found);        // mixture_of_experts/ort.cc

}  // namespace deployml
