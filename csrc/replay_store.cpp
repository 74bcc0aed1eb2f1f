#include "replay_store.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

#include "gather.h"

namespace replay {

namespace {

RingShape ring_shape(const ReplayOptions& options) {
  const std::size_t slots = options.stream_capacity_steps + options.spare_steps;
  if (!options.segment_steps) return {options.streams, slots, slots};
  const std::size_t segment_steps = *options.segment_steps;
  return {options.streams, (slots / segment_steps + 2) * segment_steps, segment_steps};
}

// The index of the first number whose exponent's bits are all set, as those of infinities and NaNs
// are; `count` if there is none.
template <typename Bits>
std::size_t find_non_finite(const std::byte* data, std::size_t count, Bits exponent) {
  const auto is_bad = [&](std::size_t index) {
    Bits bits;
    std::memcpy(&bits, data + index * sizeof(Bits), sizeof(Bits));
    return (bits & exponent) == exponent;
  };
  bool any = false;
  for (std::size_t index = 0; index < count; ++index) any |= is_bad(index);
  if (!any) return count;
  std::size_t index = 0;
  while (!is_bad(index)) ++index;
  return index;
}

std::size_t find_non_finite(DType dtype, const std::byte* data, std::size_t count) {
  switch (dtype) {
    case DType::kFloat16:
      return find_non_finite<std::uint16_t>(data, count, 0x7C00u);
    case DType::kFloat32:
      return find_non_finite<std::uint32_t>(data, count, 0x7F800000u);
    case DType::kFloat64:
      return find_non_finite<std::uint64_t>(data, count, 0x7FF0000000000000u);
    default:
      return count;
  }
}

}  // namespace

// Lets no thread but the forking one be in the middle of a change while a process forks, and gives
// the child locks that nobody holds. Condition variables cannot be destroyed in the child, where
// their waiters do not exist but are still counted: new ones are made in their place.
class ForkHandlers {
 public:
  static void enlist(ReplayStore* store) {
    static const int installed = pthread_atfork(before, after_in_parent, after_in_child);
    if (installed != 0) throw std::runtime_error(std::strerror(installed));
    const std::lock_guard lock(mutex());
    stores().insert(store);
  }

  static void delist(ReplayStore* store) {
    const std::lock_guard lock(mutex());
    stores().erase(store);
  }

 private:
  // Never destroyed: threads may outlive the program's static objects.
  static std::mutex& mutex() {
    static auto* const made = new std::mutex;
    return *made;
  }
  static std::set<ReplayStore*>& stores() {
    static auto* const made = new std::set<ReplayStore*>;
    return *made;
  }

  static void before() {
    mutex().lock();
    for (ReplayStore* store : stores()) store->mutex_.lock();
  }

  static void after_in_parent() {
    for (ReplayStore* store : stores()) store->mutex_.unlock();
    mutex().unlock();
  }

  static void after_in_child() {
    for (ReplayStore* store : stores()) {
      store->claims_.clear();
      store->exclusive_ = 0;
      new (&store->released_) std::condition_variable;
      new (&store->add_mutex_) std::mutex;
      store->mutex_.unlock();
    }
    mutex().unlock();
  }
};

Claim::Claim(Claim&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), entry_(other.entry_) {}

Claim& Claim::operator=(Claim&& other) noexcept {
  if (this != &other) {
    release();
    store_ = std::exchange(other.store_, nullptr);
    entry_ = other.entry_;
  }
  return *this;
}

void Claim::release() noexcept {
  if (store_ != nullptr) std::exchange(store_, nullptr)->release(entry_);
}

ReplayStore::ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field,
                         const ReplayOptions& options)
    : fields_(std::move(fields)),
      first_field_(first_field),
      stream_capacity_(options.stream_capacity_steps),
      threads_(options.threads),
      segmented_(options.segment_steps.has_value()),
      ring_(fields_, ring_shape(options)),
      sampler_(options.seed) {
  if (options.stream_capacity_steps == 0) {
    throw std::invalid_argument("a replay needs room for at least one step");
  }
  if (options.spare_steps == 0) throw std::invalid_argument("a replay needs a spare step");
  if (options.threads == 0) throw std::invalid_argument("a replay needs at least one thread");
  if (first_field >= fields_.size() || fields_[first_field].dtype != DType::kBool ||
      !fields_[first_field].shape.empty()) {
    throw std::invalid_argument("the field that marks first steps must be a boolean scalar");
  }
  ForkHandlers::enlist(this);
}

ReplayStore::~ReplayStore() { ForkHandlers::delist(this); }

Claim ReplayStore::claim(std::uint64_t oldest, std::thread::id owner) {
  Claim made;
  made.entry_ = {oldest, owner};
  claims_.insert(made.entry_);
  made.store_ = this;
  return made;
}

void ReplayStore::release(const Claim::Entry& entry) noexcept {
  {
    const std::lock_guard lock(mutex_);
    const auto found = claims_.find(entry);
    if (found != claims_.end()) claims_.erase(found);
  }
  released_.notify_all();
}

void ReplayStore::await_claims(std::unique_lock<std::mutex>& lock, std::uint64_t step) {
  const std::thread::id self = std::this_thread::get_id();
  for (const auto& [oldest, owner] : claims_) {
    if (oldest < step && owner == self) {
      throw std::runtime_error(
          "this call would wait for ever: it needs the end of a view that this thread holds; "
          "release the view first, or make the store with more spare steps");
    }
  }
  released_.wait(lock, [&] { return claims_.empty() || claims_.begin()->first >= step; });
}

void ReplayStore::require_finite(const std::byte* const* columns) const {
  for (std::size_t field = 0; field < fields_.size(); ++field) {
    const FieldSpec& spec = fields_[field];
    const std::size_t elements = ring_.step_bytes(field) / dtype_bytes(spec.dtype);
    const std::size_t count = ring_.streams() * elements;
    const std::size_t found = find_non_finite(spec.dtype, columns[field], count);
    if (found == count) continue;
    throw NonFiniteError("'" + spec.name + "' of stream " + std::to_string(found / elements) +
                         " must be finite, got a number that is not");
  }
}

void ReplayStore::add(const std::byte* const* columns) {
  require_finite(columns);
  const std::lock_guard adding(add_mutex_);
  std::unique_lock lock(mutex_);
  const std::uint64_t step = held_.end;
  const bool opens_segment = segmented_ && step % ring_.segment_steps() == 0;
  // The number of slots that this step gives up, starting with its own.
  const std::uint64_t given_up = opens_segment ? ring_.segment_steps() : 1;
  if (step + given_up > ring_.slots()) await_claims(lock, step + given_up - ring_.slots());
  if (opens_segment) ring_.clear_segment(step);
  lock.unlock();
  ring_.write(step, columns);
  lock.lock();
  advance_to(step + 1);
}

View ReplayStore::view(bool handed_over) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return exclusive_ == 0; });
  View made;
  made.steps = held_;
  made.claim = claim(held_.begin, handed_over ? std::thread::id() : std::this_thread::get_id());
  return made;
}

Draw ReplayStore::draw(const BatchShape& shape, const View* view) {
  std::unique_lock lock(mutex_);
  // A draw from a view must not wait for exclusive operations, which wait for the view's end.
  if (view == nullptr) released_.wait(lock, [&] { return exclusive_ == 0; });
  Draw made;
  made.windows = sampler_.draw(ring_.streams(), view != nullptr ? view->steps : held_, shape);
  made.length = shape.length;
  const auto older = [](const Window& a, const Window& b) { return a.start < b.start; };
  made.claim = claim(std::min_element(made.windows.begin(), made.windows.end(), older)->start);
  return made;
}

std::optional<Draw> ReplayStore::resume_draw(std::vector<Window> windows, std::size_t length) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return exclusive_ == 0; });
  std::uint64_t oldest = held_.end;
  for (const Window& window : windows) {
    if (window.stream >= ring_.streams() || window.start < held_.begin ||
        window.start > held_.end || length > held_.end - window.start) {
      return std::nullopt;
    }
    oldest = std::min(oldest, window.start);
  }
  return Draw{std::move(windows), length, claim(oldest)};
}

void ReplayStore::copy(const Draw& draw, std::byte* const* outputs, std::uint64_t* handles) const {
  gather(ring_, draw.windows, draw.length, outputs, threads_);
  for (const Window& window : draw.windows) ring_.require_intact(window.start, draw.length);
  ring_.require_none_lost();
  for (std::size_t row = 0; row < draw.windows.size(); ++row) {
    outputs[first_field_][row * draw.length] = std::byte{1};
    if (handles == nullptr) continue;
    const Window& window = draw.windows[row];
    for (std::size_t t = 0; t < draw.length; ++t) {
      *handles++ = (window.start + t) * ring_.streams() + window.stream;
    }
  }
}

void ReplayStore::sample(const BatchShape& shape, std::byte* const* outputs,
                         std::uint64_t* handles) {
  copy(draw(shape), outputs, handles);
}

void ReplayStore::write_back(std::size_t count, const std::uint64_t* handles,
                             const std::byte* const* values, bool* written) {
  const Exclusive exclusive(this);
  const std::size_t streams = ring_.streams();
  for (std::size_t i = 0; i < count; ++i) {
    if (handles[i] / streams >= held_.end) {
      throw std::out_of_range("there is no step with the handle " + std::to_string(handles[i]));
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t step = handles[i] / streams;
    written[i] = step >= held_.begin;
    if (!written[i]) continue;
    for (std::size_t field = 0; field < fields_.size(); ++field) {
      if (values[field] == nullptr) continue;
      const std::size_t bytes = ring_.step_bytes(field);
      std::memcpy(ring_.at(field, static_cast<std::size_t>(handles[i] % streams), step),
                  values[field] + i * bytes, bytes);
    }
  }
}

std::optional<Progress> ReplayStore::snapshot(std::size_t steps, std::byte* const* outputs) {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [&] { return exclusive_ == 0; });
  if (held_.size() != steps) return std::nullopt;
  const std::uint64_t begin = held_.begin;
  const Progress progress = {held_.end, sampler_.state()};
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
  ring_.require_intact(begin, steps);
  ring_.require_none_lost();
  return progress;
}

void ReplayStore::copy_from(ReplayStore& other) {
  for (std::size_t field = 0; field < fields_.size() || field < other.fields_.size(); ++field) {
    if (ring_.fields() != other.ring_.fields() || ring_.streams() != other.ring_.streams() ||
        ring_.step_bytes(field) != other.ring_.step_bytes(field)) {
      throw std::invalid_argument("a store can only copy one of the same fields and streams");
    }
  }
  const View view = other.view();
  const Progress progress = {view.steps.end, other.generator()};
  const std::lock_guard adding(add_mutex_);
  const Exclusive exclusive(this);
  const std::size_t kept = std::min(static_cast<std::size_t>(view.steps.size()), stream_capacity_);
  StepRing ring(fields_, ring_.shape());
  std::vector<const std::byte*> columns(fields_.size());
  for (std::uint64_t step = view.steps.end - kept; step < view.steps.end; ++step) {
    for (std::size_t field = 0; field < columns.size(); ++field) {
      columns[field] = other.ring_.at(field, 0, step);
    }
    ring.write(step, columns.data(), other.ring_.segment_steps());
  }
  other.ring_.require_intact(view.steps.end - kept, kept);
  other.ring_.require_none_lost();
  ring_ = std::move(ring);
  held_ = {view.steps.end - kept, view.steps.end};
  sampler_.restore(progress.generator);
}

void ReplayStore::restore(std::size_t steps, const std::byte* const* columns,
                          const Progress& progress) {
  const std::lock_guard adding(add_mutex_);
  const Exclusive exclusive(this);
  require_countable(steps, progress.steps_added);
  // The old ring releases its memory before the new one, which is only reserved, is filled.
  ring_ = StepRing(fields_, ring_.shape());
  const std::size_t kept = std::min(steps, stream_capacity_);
  held_ = {progress.steps_added - kept, progress.steps_added};
  std::vector<const std::byte*> step(fields_.size());
  for (std::size_t index = steps - kept; index < steps; ++index) {
    for (std::size_t field = 0; field < step.size(); ++field) {
      step[field] = columns[field] + index * ring_.step_bytes(field);
    }
    ring_.write(held_.end - (steps - index), step.data(), steps);
  }
  sampler_.restore(progress.generator);
}

std::vector<Span> ReplayStore::spans(std::uint64_t first, std::size_t steps) {
  std::vector<Span> result;
  for (std::size_t field = 0; field < fields_.size(); ++field) {
    for (std::size_t stream = 0; stream < ring_.streams(); ++stream) {
      result.push_back({ring_.at(field, stream, first), steps * ring_.step_bytes(field),
                        ring_.offset_in_segment(field, stream, first)});
    }
  }
  return result;
}

std::optional<SegmentPart> ReplayStore::write_segment(std::uint64_t step, const std::string& path) {
  require_segments();
  SegmentPart part;
  Claim claimed;
  {
    std::unique_lock lock(mutex_);
    released_.wait(lock, [&] { return exclusive_ == 0; });
    const std::uint64_t start = step - step % ring_.segment_steps();
    part.first = std::max(start, held_.begin);
    const std::uint64_t end = std::min<std::uint64_t>(start + ring_.segment_steps(), held_.end);
    if (part.first >= end) return std::nullopt;
    part.steps = static_cast<std::size_t>(end - part.first);
    claimed = claim(part.first);
  }
  part.checksum = write_segment_file(path, spans(part.first, part.steps), ring_.segment_bytes());
  return part;
}

void ReplayStore::map_segment(std::uint64_t step, const std::string& path) {
  require_segments();
  const OpenFile file(path);
  require_size(file, ring_.segment_bytes());
  const Exclusive exclusive(this);
  const std::uint64_t first = step - step % ring_.segment_steps();
  if (first >= held_.begin && first + ring_.segment_steps() <= held_.end) {
    ring_.map_segment(first, file);
  }
}

void ReplayStore::load_segment(const SegmentPart& part, const std::string& path, bool mark_first) {
  require_segments();
  if (part.steps == 0 || part.steps > ring_.segment_steps() - part.first % ring_.segment_steps()) {
    throw std::out_of_range("steps " + std::to_string(part.first) + " + " +
                            std::to_string(part.steps) + " are no part of a segment");
  }
  const Exclusive exclusive(this);
  const OpenFile file(path);
  const std::vector<Span> targets = spans(part.first, part.steps);
  if (part.steps == ring_.segment_steps()) {
    check_segment_file(file, targets, ring_.segment_bytes(), part.checksum);
    ring_.map_segment(part.first, file);
  } else {
    read_segment_file(file, targets, ring_.segment_bytes(), part.checksum);
  }
  if (!mark_first) return;
  for (std::size_t stream = 0; stream < ring_.streams(); ++stream) {
    *ring_.at(first_field_, stream, part.first) = std::byte{1};
  }
}

void ReplayStore::finish_loading(std::uint64_t begin, const Progress& progress) {
  const std::lock_guard adding(add_mutex_);
  const Exclusive exclusive(this);
  if (begin > progress.steps_added) {
    throw std::out_of_range("cannot hold steps " + std::to_string(begin) + " to " +
                            std::to_string(progress.steps_added));
  }
  require_countable(progress.steps_added - begin, progress.steps_added);
  held_.begin = begin;
  advance_to(progress.steps_added);
  sampler_.restore(progress.generator);
}

void ReplayStore::require_countable(std::uint64_t steps, std::uint64_t steps_added) const {
  if (steps > steps_added || steps_added > kMostSteps / ring_.streams()) {
    throw std::out_of_range("cannot hold " + std::to_string(steps) + " of " +
                            std::to_string(steps_added) + " steps");
  }
}

void ReplayStore::advance_to(std::uint64_t end) {
  held_.end = end;
  held_.begin = std::max(held_.begin, end - std::min<std::uint64_t>(end, stream_capacity_));
}

std::size_t ReplayStore::steps() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(held_.size());
}

std::uint64_t ReplayStore::steps_added() const {
  const std::lock_guard lock(mutex_);
  return held_.end;
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

ReplayStore::Exclusive::Exclusive(ReplayStore* store) : lock_(store->mutex_), store_(store) {
  ++store->exclusive_;
  try {
    store->await_claims(lock_, std::numeric_limits<std::uint64_t>::max());
  } catch (...) {
    --store->exclusive_;
    throw;
  }
}

ReplayStore::Exclusive::~Exclusive() {
  --store_->exclusive_;
  store_->released_.notify_all();
}

}  // namespace replay
