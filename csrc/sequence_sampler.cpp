#include "sequence_sampler.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace replay {

std::uint64_t SplitMix64::next() {
  state_ += 0x9E3779B97F4A7C15u;
  std::uint64_t mixed = state_;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  return mixed ^ (mixed >> 31);
}

std::uint64_t SplitMix64::below(std::uint64_t bound) {
  constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t leftover = (kLargest % bound + 1) % bound;  // 2^64 mod bound
  while (true) {
    const std::uint64_t drawn = next();
    if (drawn <= kLargest - leftover) return drawn % bound;
  }
}

std::vector<Window> SequenceSampler::draw(std::size_t streams, const StepRange& held,
                                          const BatchShape& shape) {
  if (shape.length == 0) {
    throw std::invalid_argument("the length of a window must be positive, got 0");
  }
  if (shape.batch_size == 0) {
    throw std::invalid_argument("the number of windows must be positive, got 0");
  }
  if (streams == 0 || held.size() < shape.length) {
    throw std::runtime_error("no stream holds a window of " + std::to_string(shape.length) +
                             " steps; the longest holds " + std::to_string(held.size()));
  }
  const std::uint64_t starts = held.size() - shape.length + 1;
  std::vector<Window> windows(shape.batch_size);
  for (Window& window : windows) {
    const std::uint64_t index = generator_.below(streams * starts);
    window = {static_cast<std::size_t>(index / starts), held.begin + index % starts};
  }
  return windows;
}

}  // namespace replay
