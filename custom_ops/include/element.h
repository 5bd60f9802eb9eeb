// Element types of the operators' tensors.
#pragma once

namespace deployml {

enum class Element : int { kFloat32, kFloat16, kBFloat16 };

inline constexpr Element kElements[] = {Element::kFloat32, Element::kFloat16, Element::kBFloat16};

}  // namespace deployml
