// Seeded uniform sampling of training windows.
//
// Every window of T consecutive steps of one stream is equally likely. Windows may cross episode
// boundaries. The order of draws is part of the contract, so that a seed always yields the same
// batches: each window takes one bounded random number, whose range enumerates the windows of the
// first stream first.
//
// Ownership: plain values. Threads: not synchronized. Complexity: draw() is O(batch_size).
// Errors: std::invalid_argument for an empty shape, std::runtime_error if too few steps are held.
//   A call that throws leaves the generator unchanged.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace replay {

// Consecutive steps of one stream, the first of which has number `start`.
struct Window {
  std::size_t stream = 0;
  std::uint64_t start = 0;
};

// The half-open range [begin, end) of step numbers.
struct StepRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t size() const { return end - begin; }
};

// The size of a batch: B windows of T steps.
struct BatchShape {
  std::size_t batch_size = 0;  // B
  std::size_t length = 0;      // T
};

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). Its
// whole state is one 64-bit number.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}

  std::uint64_t next();

  // Uniform over [0, bound) for bound > 0. Rejects values in the incomplete last block of `bound`
  // values, which avoids modulo bias.
  std::uint64_t below(std::uint64_t bound);

  std::uint64_t state() const { return state_; }

 private:
  std::uint64_t state_;
};

class SequenceSampler {
 public:
  explicit SequenceSampler(std::uint64_t seed) : generator_(seed) {}

  // Draws a batch of windows from `streams` streams, each of which holds the steps `held`.
  std::vector<Window> draw(std::size_t streams, const StepRange& held, const BatchShape& shape);

  // The generator's state. Samplers with equal states draw equal windows.
  std::uint64_t state() const { return generator_.state(); }
  void restore(std::uint64_t state) { generator_ = SplitMix64(state); }

 private:
  SplitMix64 generator_;
};

}  // namespace replay
