// Element types of the operators' tensors.
#pragma once

namespace deployml {

enum class Element : int { kFloat32, kFloat16, kBFloat16 };

/// Size of an element.
inline constexpr int bytes_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

inline constexpr Element kElements[] = {Element::kFloat32, Element::kFloat16, Element::kBFloat16};

}  // namespace deployml
