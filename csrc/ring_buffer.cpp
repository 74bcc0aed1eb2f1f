#include "ring_buffer.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace replay {

RingBuffer::RingBuffer(const std::vector<FieldSpec>& fields, std::size_t capacity_steps)
    : capacity_(capacity_steps) {
  if (fields.empty()) throw std::invalid_argument("a replay needs at least one field");
  if (capacity_steps == 0) throw std::invalid_argument("a replay needs room for at least one step");
  for (const FieldSpec& field : fields) {
    const std::size_t bytes = field.step_bytes();
    if (capacity_steps > std::numeric_limits<std::size_t>::max() / bytes) {
      throw std::invalid_argument("field '" + field.name + "' does not fit in the address space");
    }
    step_bytes_.push_back(bytes);
    columns_.emplace_back(capacity_steps * bytes);
  }
}

void RingBuffer::append(const std::byte* const* columns) {
  for (std::size_t field = 0; field < columns_.size(); ++field) {
    const std::size_t bytes = step_bytes_[field];
    std::memcpy(columns_[field].data() + cursor_ * bytes, columns[field], bytes);
  }
  cursor_ = cursor_ + 1 == capacity_ ? 0 : cursor_ + 1;
  if (size_ < capacity_) ++size_;
}

std::array<Segment, 2> RingBuffer::segments(std::size_t field, std::size_t start,
                                            std::size_t count) const {
  if (field >= columns_.size()) {
    throw std::out_of_range("field " + std::to_string(field) + " of " +
                            std::to_string(columns_.size()));
  }
  if (start > size_ || count > size_ - start) {
    throw std::out_of_range("steps [" + std::to_string(start) + ", " + std::to_string(start) +
                            " + " + std::to_string(count) + ") of " + std::to_string(size_) +
                            " held");
  }
  const std::size_t bytes = step_bytes_[field];
  const std::byte* column = columns_[field].data();
  const std::size_t oldest = size_ < capacity_ ? 0 : cursor_;
  // Compared before adding, so that no sum can overflow: both terms are at most capacity_.
  const std::size_t first =
      start >= capacity_ - oldest ? start - (capacity_ - oldest) : oldest + start;
  const std::size_t until_end = capacity_ - first;
  const std::size_t head = count < until_end ? count : until_end;
  return {Segment{column + first * bytes, head * bytes}, Segment{column, (count - head) * bytes}};
}

void RingBuffer::read(std::size_t field, std::size_t start, std::size_t count,
                      std::byte* output) const {
  for (const Segment& segment : segments(field, start, count)) {
    std::memcpy(output, segment.data, segment.bytes);
    output += segment.bytes;
  }
}

}  // namespace replay
