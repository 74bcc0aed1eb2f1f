// The whole replay: a ring per stream, the sampler, and the locks that let them be shared.
//
// Ownership: owns everything stored; every pointer handed in is borrowed for the call.
// Threads: every method may be called from any thread. Draws happen one at a time, in a total
//   order; an append waits for the sample or snapshot that is copying, and the other way round.
//   The caller keeps its own arrays still while a call reads or writes them. A process forked
//   while no call is in flight may use its copy freely.
// Complexity: append O(bytes of a step * streams), sample O(bytes of the batch), snapshot and
//   restore O(bytes held). Memory is touched only as it fills.
// Errors: those of ring_buffer.h, sequence_sampler.h and gather.h. A call that throws has left
//   contents and generator as they were.
//
// A step is appended to all streams at once, so they always hold the same number of steps.

#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "field_spec.h"
#include "ring_buffer.h"
#include "sequence_sampler.h"

namespace replay {

class ReplayStore {
 public:
  // What a snapshot holds beside the contents.
  struct Marks {
    std::uint64_t steps_added = 0;  // appended to each stream since it was new
    std::uint64_t generator = 0;
  };

  // `first_field` is the index of the boolean scalar that sample sets on the first step of every
  // window. `streams`, `threads` and `capacity_steps` (of each stream) must be positive.
  ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field, std::size_t streams,
              std::size_t capacity_steps, std::uint64_t seed, std::size_t threads);

  // Appends one step to every stream; columns[f] points to the steps of field f, one after the
  // other in the order of streams.
  void append(const std::byte* const* columns);

  // Draws `batch` windows of `length` steps and copies them out (layout as in gather.h), the first
  // step of each marked as first. The contents keep their own marks.
  void sample(std::size_t batch, std::size_t length, std::byte* const* outputs);

  // Copies all contents, outputs[f] being an array of shape (streams, steps, ...) in order of age,
  // and the marks that belong to them. Does nothing and returns false where the streams do not
  // hold `steps` steps (any more): size the outputs by steps() and try again.
  bool snapshot(std::size_t steps, std::byte* const* outputs, Marks* marks) const;

  // Replaces the contents by the newest that fit of those in columns[f], of shape
  // (streams, steps, ...), and takes over the marks.
  void restore(std::size_t steps, const std::byte* const* columns, const Marks& marks);

  // Steps held by each stream, and appended to each since it was new.
  std::size_t steps() const;
  std::uint64_t steps_added() const;

  const std::vector<FieldSpec>& fields() const { return fields_; }
  std::size_t streams() const { return rings_.size(); }
  std::size_t capacity() const { return rings_.front().capacity(); }
  // Bytes of one step of one stream, over all fields.
  std::size_t step_bytes() const;

 private:
  void append_locked(const std::byte* const* columns, std::size_t stride_steps);

  const std::vector<FieldSpec> fields_;
  const std::size_t first_field_;
  const std::size_t threads_;
  std::vector<RingBuffer> rings_;
  SequenceSampler sampler_;
  std::uint64_t steps_added_ = 0;
  mutable std::mutex sampler_mutex_;          // guards sampler_; taken before contents_mutex_
  mutable std::shared_mutex contents_mutex_;  // guards rings_ and steps_added_
};

}  // namespace replay
