#include "step_ring.h"

#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <stdexcept>

namespace replay {

namespace {

constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max() / 2;
constexpr std::size_t kFieldAlignment = 64;  // one cache line

std::size_t product(std::size_t a, std::size_t b, const char* what) {
  if (b != 0 && a > kLargest / b) {
    throw std::invalid_argument(std::string(what) + " does not fit in the address space");
  }
  return a * b;
}

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

StepRing::StepRing(const std::vector<FieldSpec>& fields, const RingShape& shape)
    : shape_(shape), segment_bytes_(0), memory_(kPageBytes) {
  if (fields.empty()) throw std::invalid_argument("a replay needs at least one field");
  if (shape.streams == 0) throw std::invalid_argument("a replay needs at least one stream");
  if (shape.slots == 0) throw std::invalid_argument("a replay needs room for at least one step");
  if (shape.segment_steps == 0 || shape.slots % shape.segment_steps != 0) {
    throw std::invalid_argument("segments must divide the ring");
  }
  const std::size_t steps = product(shape.streams, shape.segment_steps, "a segment");
  for (const FieldSpec& field : fields) {
    const std::size_t bytes = field.step_bytes();
    step_bytes_.push_back(bytes);
    field_offset_.push_back(segment_bytes_);
    const std::size_t column = product(steps, bytes, ("field '" + field.name + "'").c_str());
    segment_bytes_ = round_up(segment_bytes_ + column, kFieldAlignment);
    if (segment_bytes_ > kLargest) throw std::invalid_argument("the fields are too large");
  }
  segment_bytes_ = round_up(segment_bytes_, kPageBytes);
  memory_ = ReservedMemory(product(shape.slots / shape.segment_steps, segment_bytes_, "a replay"));
  mapped_.resize(shape.slots / shape.segment_steps);
}

void StepRing::write(std::uint64_t step, const std::byte* const* columns,
                     std::size_t stride_steps) {
  for (std::size_t field = 0; field < step_bytes_.size(); ++field) {
    const std::size_t bytes = step_bytes_[field];
    const std::size_t next_stream = shape_.segment_steps * bytes;
    std::byte* output = at(field, 0, step);
    const std::byte* column = columns[field];
    for (std::size_t stream = 0; stream < shape_.streams; ++stream) {
      std::memcpy(output, column, bytes);
      output += next_stream;
      column += stride_steps * bytes;
    }
  }
}

void StepRing::require_intact(std::uint64_t step, std::size_t count) const {
  for (const std::uint64_t end = step + count; step < end;
       step += shape_.segment_steps - step % shape_.segment_steps) {
    const std::string& path = mapped_[segment(step)];
    struct stat facts{};
    // A file that was removed keeps its contents for as long as it is mapped.
    if (path.empty() || stat(path.c_str(), &facts) != 0) continue;
    if (static_cast<std::size_t>(facts.st_size) < segment_bytes_) {
      throw FileError(path + ": was cut to " + std::to_string(facts.st_size) +
                      " bytes while in use");
    }
  }
}

void StepRing::require_none_lost() const {
  if (memory_.lost_pages() != 0) {
    throw FileError("a file of replayed steps was cut, or could not be read, while in use");
  }
}

}  // namespace replay
