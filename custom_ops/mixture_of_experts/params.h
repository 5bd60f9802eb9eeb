// What the GPU kernels of MixtureOfExperts are given: an ExpertsCall with sizes as ints, and memory between kernels.
#pragma once

#include "experts.h"
#include "gpu.h"

namespace deployml {

struct ExpertsParams {
  const void* x;
  const int64_t* chosen;
  const void* weights;
  const void* first;
  const void* second;
  const void* first_bias;
  const void* second_bias;
  void* output;

  int* starts;    // (count + 1) rows before each expert
  int* slots;     // (tokens * each) the slot of each row, by expert
  void* between;  // (tokens * each, inner) T, after the activation
  float* made;    // (tokens * each, hidden) of each slot

  int tokens, each, count, hidden, inner;
  int tiles;  // of rows, at most: experts need not divide by the rows of a block
  bool hidden_chunks, inner_chunks;  // rows of these lengths begin at multiples of 16 bytes and are a number of them

  Activation activation;
  bool gated;
  float alpha, limit, offset;
};

}  // namespace deployml
