// The replay store: ring and sampler behind one thread-safe interface.
//
// Every add() stores one step of each stream, so all streams hold the same step numbers. A step's
// number is the count of steps added to its stream before it, since the store, or the store whose
// snapshot was restored, was new.
//
// Ownership: owns all stored steps. Pointers passed in are borrowed for the call. Claims, and the
//   draws and views that contain one, must not outlive the store.
// Threads: every method may be called from any thread. The locking contract:
//   - One mutex guards the step counters, the generator and the claims. It is held to draw windows
//     and to update counters, and not while steps are copied, except by exclusive operations.
//   - A reader claims the steps that it needs and copies them without holding the mutex. A claim
//     protects all steps from its oldest one on against being overwritten.
//   - add() writes to a slot whose step is no longer held. It waits only while a claim still covers
//     the slots that it gives up. Calls of add() are serialized.
//   - write_back, restore, map_segment, load_segment and finish_loading are exclusive: they wait
//     until all claims are released. Meanwhile only draws from a view obtain new claims; other
//     readers wait.
//   - Draws from a view depend only on the view and the generator, whatever is added meanwhile.
//   - A wait for a view that the waiting thread itself holds would not end: it throws instead.
//   The caller must not modify its arrays during a call. A process may fork at any time, also while
//   other threads are in a call. The child's copy is independent and ignores the parent's claims; a
//   step that another thread was adding is not held there.
// Complexity: add() O(bytes of a step of all streams), sample() O(bytes of the batch); snapshot()
//   and restore() O(bytes held). Memory is allocated only as the store fills.
// Errors: those of step_ring.h, sequence_sampler.h, gather.h and segment_file.h; NonFiniteError;
//   std::runtime_error for a wait that would not end. A call that throws leaves the held steps and
//   the generator unchanged.

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "field_spec.h"
#include "segment_file.h"
#include "sequence_sampler.h"
#include "step_ring.h"

namespace replay {

class ReplayStore;

// A step holds a number that is infinite or none; the message names its field and its stream.
class NonFiniteError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Protects steps against being overwritten for as long as it exists. Movable; a default-constructed
// or released claim protects nothing.
class Claim {
 public:
  Claim() = default;
  ~Claim() { release(); }
  Claim(Claim&& other) noexcept;
  Claim& operator=(Claim&& other) noexcept;
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  void release() noexcept;

 private:
  friend class ReplayStore;
  // The oldest step that is claimed and the thread that will release it; no thread if any may.
  using Entry = std::pair<std::uint64_t, std::thread::id>;
  ReplayStore* store_ = nullptr;
  Entry entry_;
};

// Windows that have been drawn, claimed until they are copied.
struct Draw {
  std::vector<Window> windows;
  std::size_t length = 0;
  Claim claim;
};

// The steps that were held at one moment, claimed for the lifetime of the view.
struct View {
  StepRange steps;
  Claim claim;
};

// The options of a store. Every count must be at least 1.
struct ReplayOptions {
  std::size_t streams = 1;                // one per environment
  std::size_t stream_capacity_steps = 0;  // per stream; has no default
  std::uint64_t seed = 0;                 // of the sampler
  std::size_t threads = 1;                // for copying a batch
  // Steps per stream that can be added to a full store while a view of it exists.
  std::size_t spare_steps = 1;
  // Steps per stream of a segment; absent if the store is in memory only. The ring of a store with
  // segments is one to two segments larger, because segments are overwritten as a whole.
  std::optional<std::size_t> segment_steps;
};

// Numbers of steps and handles are added to and multiplied without a check below this.
constexpr std::uint64_t kMostSteps = std::uint64_t{1} << 63;

// The part of a store's state besides the held steps.
struct Progress {
  std::uint64_t steps_added = 0;  // per stream since the store was new, kMostSteps over all at most
  std::uint64_t generator = 0;    // the sampler's state
};

// The steps that a file holds of one segment.
struct SegmentPart {
  std::uint64_t first = 0;     // number of the first step
  std::size_t steps = 0;       // at least 1
  std::uint32_t checksum = 0;  // CRC-32 of their bytes
};

class ReplayStore {
 public:
  // `first_field` is the index of the boolean scalar field that copy() sets on the first step of
  // every window. Throws std::invalid_argument for invalid fields or options.
  ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field, const ReplayOptions& options);
  ~ReplayStore();
  ReplayStore(const ReplayStore&) = delete;
  ReplayStore& operator=(const ReplayStore&) = delete;

  // Adds one step to every stream, overwriting the oldest in a full store. columns[f] points to
  // field f of all streams, contiguous in stream order. Throws NonFiniteError, with nothing added
  // to any stream, if a floating-point field holds a number that is not finite.
  void add(const std::byte* const* columns);

  // A view of the steps that are held now. With `handed_over`, another thread than the caller's
  // ends it, so that calls of this thread may wait for its end.
  View view(bool handed_over = false);
  // Draws windows and claims them. `view` is borrowed for the call; null draws from the steps that
  // are held now.
  Draw draw(const BatchShape& shape, const View* view = nullptr);
  // Claims windows that were drawn earlier; the generator does not advance. Empty if a window is
  // not, or no longer, held.
  std::optional<Draw> resume_draw(std::vector<Window> windows, std::size_t length);
  // Copies a draw to outputs with the layout of gather.h and sets the first field on the first step
  // of each window; the stored values do not change. If `handles` is not null, writes the handles
  // of all B * T steps there, which identify them to write_back().
  void copy(const Draw& draw, std::byte* const* outputs, std::uint64_t* handles) const;
  // draw() and copy() in one call.
  void sample(const BatchShape& shape, std::byte* const* outputs, std::uint64_t* handles = nullptr);

  // Overwrites fields of individual steps in memory; segment files that exist do not change.
  // values[f] points to `count` values of field f, or is null to leave that field unchanged.
  // Sets written[i] to whether the step of handles[i] is still held; values of other steps are
  // ignored. For a repeated handle the last values count. Throws std::out_of_range, with nothing
  // written, if a handle identifies a step that was never added.
  void write_back(std::size_t count, const std::uint64_t* handles, const std::byte* const* values,
                  bool* written);

  // Copies all held steps, oldest first, to arrays outputs[f] of shape (streams, steps, ...), and
  // returns the matching progress. Empty, with nothing copied, unless exactly `steps` steps are
  // held: allocate for steps() and repeat the call if another thread added a step in between.
  std::optional<Progress> snapshot(std::size_t steps, std::byte* const* outputs);

  // Replaces the held steps and the progress by those of another store of the same fields and
  // streams. Keeps the newest steps if the capacity is smaller.
  void copy_from(ReplayStore& other);

  // Replaces the held steps by those in arrays columns[f] of shape (streams, steps, ...), oldest
  // first, and the progress. Keeps the newest steps if the capacity is smaller. Throws
  // std::out_of_range, with nothing replaced, if the progress is not possible.
  void restore(std::size_t steps, const std::byte* const* columns, const Progress& progress);

  // write_segment, map_segment and load_segment throw std::invalid_argument if the store has no
  // segments.

  // Writes the held steps of the segment that contains step number `step` to a new file and syncs
  // it. Empty, with no file written, if none of its steps is held.
  std::optional<SegmentPart> write_segment(std::uint64_t step, const std::string& path);
  // Replaces a segment's memory by a mapping of its file. Does nothing unless all steps of the
  // segment are held. Values that were written back after the file was written are lost.
  void map_segment(std::uint64_t step, const std::string& path);
  // Loads a segment from its file into a store that is being filled from files: maps the file if it
  // holds a whole segment, else copies its steps. With `mark_first`, sets the first field on its
  // first step. Throws std::out_of_range if the part exceeds a segment.
  void load_segment(const SegmentPart& part, const std::string& path, bool mark_first);
  // Ends loading: the steps [begin, progress.steps_added) count as held, or the newest of them if
  // the capacity is smaller. Throws std::out_of_range if begin exceeds progress.steps_added, or
  // the progress is not possible.
  void finish_loading(std::uint64_t begin, const Progress& progress);

  std::size_t steps() const;          // held, per stream
  std::uint64_t steps_added() const;  // per stream since the store was new
  std::uint64_t generator() const;    // the sampler's state

  const std::vector<FieldSpec>& fields() const { return fields_; }
  std::size_t streams() const { return ring_.streams(); }
  // The bytes of one step of one stream, over all fields.
  std::size_t step_bytes() const;

 private:
  friend class Claim;
  friend class ForkHandlers;
  void require_finite(const std::byte* const* columns) const;
  // The caller holds mutex_.
  Claim claim(std::uint64_t oldest, std::thread::id owner = std::thread::id());
  void release(const Claim::Entry& entry) noexcept;
  // Waits until no claim covers a step before `step`. Throws if this thread owns such a claim.
  void await_claims(std::unique_lock<std::mutex>& lock, std::uint64_t step);
  // The memory and the file offsets of `steps` steps of one segment, the first being `first`.
  std::vector<Span> spans(std::uint64_t first, std::size_t steps);
  // Sets held_.end and drops steps beyond the capacity; the caller holds mutex_.
  void advance_to(std::uint64_t end);
  void require_segments() const;
  void require_countable(std::uint64_t steps, std::uint64_t steps_added) const;

  // Holds mutex_ while no claim exists, for an exclusive operation.
  class Exclusive {
   public:
    explicit Exclusive(ReplayStore* store);
    ~Exclusive();

   private:
    std::unique_lock<std::mutex> lock_;
    ReplayStore* store_;
  };

  const std::vector<FieldSpec> fields_;
  const std::size_t first_field_;
  const std::size_t stream_capacity_;
  const std::size_t threads_;
  const bool segmented_;
  StepRing ring_;

  std::mutex add_mutex_;      // held by add, restore and finish_loading; locked before mutex_
  mutable std::mutex mutex_;  // guards the members below
  std::condition_variable released_;
  SequenceSampler sampler_;
  StepRange held_;
  std::size_t exclusive_ = 0;  // exclusive operations that wait or run
  std::multiset<Claim::Entry> claims_;
};

}  // namespace replay
