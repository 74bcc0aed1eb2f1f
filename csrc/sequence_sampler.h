// A seeded, reproducible, uniform draw of training windows.
//
// Every window of `length` consecutive steps of one stream is equally likely. Windows may cross the
// end of an episode. The order of draws is part of the contract: row after row, each row one
// bounded number from the generator, the first stream's windows first.
//
// Ownership: plain values. Threads: none of its own; draw and restore need the sampler alone.
// Complexity: draw is O(count). Errors: std::invalid_argument for a bad length or count,
//   std::runtime_error where too few steps are held; the generator has then not moved.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace replay {

// Consecutive steps of stream `stream` from step `start` on.
struct Window {
  std::size_t stream = 0;
  std::uint64_t start = 0;
};

// The step numbers [begin, end).
struct StepRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t size() const { return end - begin; }
};

// The number of a batch's windows, B, and their length, T.
struct BatchShape {
  std::size_t batch_size = 0;
  std::size_t length = 0;
};

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): one
// word of state, so saving it is saving one number.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}

  std::uint64_t next();

  // Uniform over [0, bound), bound > 0, without modulo bias: draws that fall into the incomplete
  // last block of `bound` values are thrown away.
  std::uint64_t below(std::uint64_t bound);

  std::uint64_t state() const { return state_; }

 private:
  std::uint64_t state_;
};

class SequenceSampler {
 public:
  explicit SequenceSampler(std::uint64_t seed) : generator_(seed) {}

  // Draws a batch of windows from `streams` streams, all of which hold the same steps.
  std::vector<Window> draw(std::size_t streams, const StepRange& held, const BatchShape& shape);

  // The generator, to save and to put back: equal states draw equal windows.
  std::uint64_t state() const { return generator_.state(); }
  void restore(std::uint64_t state) { generator_ = SplitMix64(state); }

 private:
  SplitMix64 generator_;
};

}  // namespace replay
