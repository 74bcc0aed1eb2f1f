#include "replay_store.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "gather.h"

namespace replay {

namespace {

// Slots of each stream, in whole segments where there are segments.
std::size_t slots_for(const ReplayOptions& options) {
  const std::size_t slots = options.capacity_steps + options.spare_steps;
  if (!options.segment_steps) return slots;
  return (slots / *options.segment_steps + 2) * *options.segment_steps;
}

}  // namespace

Claim::Claim(Claim&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), oldest_(other.oldest_) {}

Claim& Claim::operator=(Claim&& other) noexcept {
  if (this != &other) {
    release();
    store_ = std::exchange(other.store_, nullptr);
    oldest_ = other.oldest_;
  }
  return *this;
}

void Claim::release() noexcept {
  if (store_ != nullptr) std::exchange(store_, nullptr)->release(oldest_);
}

ReplayStore::ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field,
                         const ReplayOptions& options)
    : fields_(std::move(fields)),
      first_field_(first_field),
      capacity_(options.capacity_steps),
      threads_(options.threads),
      segmented_(options.segment_steps.has_value()),
      ring_(fields_, options.streams, slots_for(options),
            options.segment_steps.value_or(slots_for(options))),
      sampler_(options.seed),
      claims_process_(getpid()) {
  if (options.capacity_steps == 0) {
    throw std::invalid_argument("a replay needs room for at least one step");
  }
  if (options.spare_steps == 0) throw std::invalid_argument("a replay needs a spare step");
  if (options.threads == 0) throw std::invalid_argument("a replay needs at least one thread");
  if (first_field >= fields_.size() || fields_[first_field].dtype != DType::kBool ||
      !fields_[first_field].shape.empty()) {
    throw std::invalid_argument("the field that marks first steps must be a boolean scalar");
  }
}

Claim ReplayStore::claim(std::uint64_t oldest) {
  if (claims_process_ != getpid()) {
    claims_.clear();  // a forked parent's readers read the parent's memory
    claims_process_ = getpid();
  }
  claims_.insert(oldest);
  Claim made;
  made.store_ = this;
  made.oldest_ = oldest;
  return made;
}

void ReplayStore::release(std::uint64_t oldest) noexcept {
  {
    const std::lock_guard lock(mutex_);
    const auto found = claims_.find(oldest);
    if (found != claims_.end()) claims_.erase(found);
  }
  released_.notify_all();
}

void ReplayStore::await_claims(std::unique_lock<std::mutex>& lock, std::uint64_t step) {
  released_.wait(lock, [&] {
    return claims_.empty() || claims_process_ != getpid() || *claims_.begin() >= step;
  });
}

void ReplayStore::add(const std::byte* const* columns) {
  const std::lock_guard adding(add_mutex_);
  std::unique_lock lock(mutex_);
  const std::uint64_t step = end_;
  const bool opens_segment = segmented_ && step % ring_.segment_steps() == 0;
  // Slots that are given up now, counted from this step's own.
  const std::uint64_t given_up = opens_segment ? ring_.segment_steps() : 1;
  if (step + given_up > ring_.slots()) await_claims(lock, step + given_up - ring_.slots());
  if (opens_segment) ring_.clear_segment(step);
  lock.unlock();
  ring_.write(step, columns);
  lock.lock();
  end_ = step + 1;
  begin_ = std::max(begin_, end_ - std::min<std::uint64_t>(end_, capacity_));
}

View ReplayStore::view() {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return alone_ == 0; });
  View made;
  made.begin = begin_;
  made.end = end_;
  made.claim = claim(begin_);
  return made;
}

Draw ReplayStore::draw(std::size_t batch, std::size_t length, const View* view) {
  std::unique_lock lock(mutex_);
  // Who holds a view must not wait for those who wait for its end.
  if (view == nullptr) released_.wait(lock, [&] { return alone_ == 0; });
  Draw made;
  made.windows = sampler_.draw(ring_.streams(), view ? view->begin : begin_,
                               view ? view->end : end_, length, batch);
  made.length = length;
  const auto older = [](const Window& a, const Window& b) { return a.start < b.start; };
  made.claim = claim(std::min_element(made.windows.begin(), made.windows.end(), older)->start);
  return made;
}

bool ReplayStore::resume_draw(std::vector<Window> windows, std::size_t length, Draw* draw) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return alone_ == 0; });
  std::uint64_t oldest = end_;
  for (const Window& window : windows) {
    if (window.stream >= ring_.streams() || window.start < begin_ || window.start > end_ ||
        length > end_ - window.start) {
      return false;
    }
    oldest = std::min(oldest, window.start);
  }
  draw->windows = std::move(windows);
  draw->length = length;
  draw->claim = claim(oldest);
  return true;
}

void ReplayStore::copy(const Draw& draw, std::byte* const* outputs, std::uint64_t* handles) const {
  gather(ring_, draw.windows, draw.length, outputs, threads_);
  for (std::size_t row = 0; row < draw.windows.size(); ++row) {
    outputs[first_field_][row * draw.length] = std::byte{1};
    if (handles == nullptr) continue;
    const Window& window = draw.windows[row];
    for (std::size_t t = 0; t < draw.length; ++t) {
      *handles++ = (window.start + t) * ring_.streams() + window.stream;
    }
  }
}

void ReplayStore::sample(std::size_t batch, std::size_t length, std::byte* const* outputs,
                         std::uint64_t* handles) {
  copy(draw(batch, length), outputs, handles);
}

void ReplayStore::write_back(std::size_t count, const std::uint64_t* handles,
                             const std::byte* const* values, bool* written) {
  const Alone alone(this);
  const std::size_t streams = ring_.streams();
  for (std::size_t i = 0; i < count; ++i) {
    if (handles[i] / streams >= end_) {
      throw std::out_of_range("there is no step with the handle " + std::to_string(handles[i]));
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t step = handles[i] / streams;
    written[i] = step >= begin_;
    if (!written[i]) continue;
    for (std::size_t field = 0; field < fields_.size(); ++field) {
      if (values[field] == nullptr) continue;
      const std::size_t bytes = ring_.step_bytes(field);
      std::memcpy(ring_.at(field, static_cast<std::size_t>(handles[i] % streams), step),
                  values[field] + i * bytes, bytes);
    }
  }
}

bool ReplayStore::snapshot(std::size_t steps, std::byte* const* outputs, Marks* marks) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return alone_ == 0; });
  if (end_ - begin_ != steps) return false;
  const std::uint64_t begin = begin_;
  *marks = {end_, sampler_.state()};
  const Claim claimed = claim(begin);
  lock.unlock();
  for (std::size_t field = 0; field < fields_.size(); ++field) {
    std::byte* output = outputs[field];
    for (std::size_t stream = 0; stream < ring_.streams(); ++stream) {
      ring_.pieces(field, stream, begin, steps, [&](const std::byte* piece, std::size_t bytes) {
        std::memcpy(output, piece, bytes);
        output += bytes;
      });
    }
  }
  return true;
}

void ReplayStore::restore(std::size_t steps, const std::byte* const* columns, const Marks& marks) {
  const std::lock_guard adding(add_mutex_);
  const Alone alone(this);
  // A new ring costs only address space, and the old one's memory is free before the copy begins.
  ring_ = StepRing(fields_, ring_.streams(), ring_.slots(), ring_.segment_steps());
  const std::size_t kept = std::min(steps, capacity_);
  end_ = marks.steps_added;
  begin_ = end_ - kept;
  std::vector<const std::byte*> step(fields_.size());
  for (std::size_t index = steps - kept; index < steps; ++index) {
    for (std::size_t field = 0; field < step.size(); ++field) {
      step[field] = columns[field] + index * ring_.step_bytes(field);
    }
    ring_.write(end_ - (steps - index), step.data(), steps);
  }
  sampler_.restore(marks.generator);
}

std::vector<Span> ReplayStore::spans(std::uint64_t first, std::size_t steps) {
  std::vector<Span> found;
  for (std::size_t field = 0; field < fields_.size(); ++field) {
    for (std::size_t stream = 0; stream < ring_.streams(); ++stream) {
      found.push_back({ring_.at(field, stream, first), steps * ring_.step_bytes(field),
                       ring_.offset_in_segment(field, stream, first)});
    }
  }
  return found;
}

ReplayStore::SegmentPart ReplayStore::write_segment(std::uint64_t step, const std::string& path) {
  require_segments();
  SegmentPart part;
  Claim claimed;
  {
    std::unique_lock lock(mutex_);
    released_.wait(lock, [&] { return alone_ == 0; });
    const std::uint64_t start = step - step % ring_.segment_steps();
    part.first = std::max(start, begin_);
    const std::uint64_t last = std::min<std::uint64_t>(start + ring_.segment_steps(), end_);
    if (part.first >= last) return part;
    part.steps = static_cast<std::size_t>(last - part.first);
    claimed = claim(part.first);
  }
  part.checksum = write_segment_file(path, spans(part.first, part.steps), ring_.segment_bytes());
  return part;
}

void ReplayStore::map_segment(std::uint64_t step, const std::string& path) {
  require_segments();
  const OpenFile file(path);
  const Alone alone(this);
  const std::uint64_t first = step - step % ring_.segment_steps();
  if (first >= begin_ && first + ring_.segment_steps() <= end_) {
    ring_.map_segment(first, file.descriptor(), 0);
  }
}

void ReplayStore::load_segment(const SegmentPart& part, const std::string& path, bool mark_first) {
  require_segments();
  if (part.steps == 0 || part.steps > ring_.segment_steps() - part.first % ring_.segment_steps()) {
    throw std::out_of_range("steps " + std::to_string(part.first) + " + " +
                            std::to_string(part.steps) + " are no part of a segment");
  }
  const Alone alone(this);
  const bool whole = part.steps == ring_.segment_steps();
  const OpenFile file(path);
  read_segment_file(file, path, spans(part.first, part.steps), ring_.segment_bytes(), part.checksum,
                    !whole);
  if (whole) ring_.map_segment(part.first, file.descriptor(), 0);
  if (!mark_first) return;
  for (std::size_t stream = 0; stream < ring_.streams(); ++stream) {
    *ring_.at(first_field_, stream, part.first) = std::byte{1};
  }
}

void ReplayStore::resume(std::uint64_t begin, const Marks& marks) {
  const std::lock_guard adding(add_mutex_);
  const Alone alone(this);
  if (begin > marks.steps_added) {
    throw std::out_of_range("cannot hold steps " + std::to_string(begin) + " to " +
                            std::to_string(marks.steps_added));
  }
  end_ = marks.steps_added;
  begin_ = std::max(begin, end_ - std::min<std::uint64_t>(end_, capacity_));
  sampler_.restore(marks.generator);
}

std::size_t ReplayStore::steps() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(end_ - begin_);
}

std::uint64_t ReplayStore::steps_added() const {
  const std::lock_guard lock(mutex_);
  return end_;
}

std::uint64_t ReplayStore::generator() const {
  const std::lock_guard lock(mutex_);
  return sampler_.state();
}

std::size_t ReplayStore::step_bytes() const {
  std::size_t bytes = 0;
  for (const FieldSpec& field : fields_) bytes += field.step_bytes();
  return bytes;
}

void ReplayStore::require_segments() const {
  if (!segmented_) throw std::invalid_argument("this replay is in memory alone");
}

ReplayStore::Alone::Alone(ReplayStore* store) : lock_(store->mutex_), store_(store) {
  ++store->alone_;
  store->await_claims(lock_, std::numeric_limits<std::uint64_t>::max());
}

ReplayStore::Alone::~Alone() {
  --store_->alone_;
  store_->released_.notify_all();
}

}  // namespace replay
