#include "replay_store.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "gather.h"

namespace replay {

namespace {

std::vector<RingBuffer> make_rings(const std::vector<FieldSpec>& fields, std::size_t streams,
                                   std::size_t capacity_steps) {
  std::vector<RingBuffer> rings;
  for (std::size_t stream = 0; stream < streams; ++stream) {
    rings.emplace_back(fields, capacity_steps);
  }
  return rings;
}

}  // namespace

ReplayStore::ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field,
                         std::size_t streams, std::size_t capacity_steps, std::uint64_t seed,
                         std::size_t threads)
    : fields_(std::move(fields)),
      first_field_(first_field),
      threads_(threads),
      rings_(make_rings(fields_, streams, capacity_steps)),
      sampler_(seed) {
  if (streams == 0) throw std::invalid_argument("a replay needs at least one stream");
  if (threads == 0) throw std::invalid_argument("a replay needs at least one thread");
  if (first_field >= fields_.size() || fields_[first_field].dtype != DType::kBool ||
      !fields_[first_field].shape.empty()) {
    throw std::invalid_argument("the field that marks first steps must be a boolean scalar");
  }
}

void ReplayStore::append(const std::byte* const* columns) {
  const std::unique_lock contents(contents_mutex_);
  append_locked(columns, 1);
  ++steps_added_;
}

void ReplayStore::append_locked(const std::byte* const* columns, std::size_t stride_steps) {
  std::vector<const std::byte*> step(columns, columns + fields_.size());
  for (RingBuffer& ring : rings_) {
    ring.append(step.data());
    for (std::size_t field = 0; field < step.size(); ++field) {
      step[field] += stride_steps * ring.step_bytes(field);
    }
  }
}

void ReplayStore::sample(std::size_t batch, std::size_t length, std::byte* const* outputs) {
  const std::unique_lock sampler(sampler_mutex_);
  const std::shared_lock contents(contents_mutex_);
  const std::vector<std::size_t> held(rings_.size(), rings_.front().size());
  gather(rings_, sampler_.draw(held, length, batch), length, outputs, threads_);
  for (std::size_t row = 0; row < batch; ++row) {
    outputs[first_field_][row * length] = std::byte{1};
  }
}

bool ReplayStore::snapshot(std::size_t steps, std::byte* const* outputs, Marks* marks) const {
  const std::unique_lock sampler(sampler_mutex_);
  const std::shared_lock contents(contents_mutex_);
  if (rings_.front().size() != steps) return false;
  for (std::size_t field = 0; field < fields_.size(); ++field) {
    std::byte* output = outputs[field];
    for (const RingBuffer& ring : rings_) {
      ring.read(field, 0, steps, output);
      output += steps * ring.step_bytes(field);
    }
  }
  *marks = {steps_added_, sampler_.state()};
  return true;
}

void ReplayStore::restore(std::size_t steps, const std::byte* const* columns, const Marks& marks) {
  const std::unique_lock sampler(sampler_mutex_);
  const std::unique_lock contents(contents_mutex_);
  // New rings cost only address space, and the old ones' memory is free before the copy begins.
  rings_ = make_rings(fields_, rings_.size(), rings_.front().capacity());
  const std::size_t oldest = steps - std::min(steps, rings_.front().capacity());
  std::vector<const std::byte*> step(fields_.size());
  for (std::size_t index = oldest; index < steps; ++index) {
    for (std::size_t field = 0; field < step.size(); ++field) {
      step[field] = columns[field] + index * rings_.front().step_bytes(field);
    }
    append_locked(step.data(), steps);
  }
  steps_added_ = marks.steps_added;
  sampler_.restore(marks.generator);
}

std::size_t ReplayStore::steps() const {
  const std::shared_lock contents(contents_mutex_);
  return rings_.front().size();
}

std::uint64_t ReplayStore::steps_added() const {
  const std::shared_lock contents(contents_mutex_);
  return steps_added_;
}

std::size_t ReplayStore::step_bytes() const {
  std::size_t bytes = 0;
  for (const FieldSpec& field : fields_) bytes += field.step_bytes();
  return bytes;
}

}  // namespace replay
