// The whole replay: the ring, the sampler, and the order in which threads may use them.
//
// Ownership: owns everything stored; every pointer handed in is borrowed for the call. A Claim
//   must not outlive its store.
// Threads: every method may be called from any thread. The locking contract:
//   - One lock guards the counters, the generator and the list of claims. It is held for as long as
//     it takes to draw windows or move a counter, never while steps are copied, with three
//     exceptions that change steps in place: write_back, restore and map_segment.
//   - Readers claim the steps they will read, and then read without any lock. Any number may.
//   - add has more slots than steps to keep, and writes to one that no reader can be given any
//     more. It waits only where a claim is so old that it still covers that slot. Appends happen
//     one at a time.
//   - Draws from a view depend on it and the generator alone, whatever is added meanwhile.
//   - write_back, restore and map_segment wait for all claims to end; none is given meanwhile.
//   The caller keeps its own arrays still while a call reads or writes them. A process forked while
//   no call is in flight may use its copy freely; claims of the parent's other threads are not its.
// Complexity: add O(bytes of a step * streams), sample O(bytes of the batch), snapshot and
//   restore O(bytes held). Memory is touched only as it fills.
// Errors: those of step_ring.h, sequence_sampler.h and gather.h. A call that throws has left
//   contents and generator as they were.
//
// A step is added to all streams at once, so they always hold the same steps: a number counts
// the steps added to each stream before it, since the store (or the one it was restored from)
// was new.

#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "field_spec.h"
#include "segment_file.h"
#include "sequence_sampler.h"
#include "step_ring.h"

namespace replay {

class ReplayStore;

// Steps that are not overwritten for as long as this lives.
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
  ReplayStore* store_ = nullptr;
  std::uint64_t oldest_ = 0;
};

// Windows that were drawn and are still to be copied.
struct Draw {
  std::vector<Window> windows;
  std::size_t length = 0;
  Claim claim;
};

// The steps [begin, end) that were held at one moment; they stay for as long as this lives.
struct View {
  StepRange steps;
  Claim claim;
};

// What a store is made with, besides its fields.
struct ReplayOptions {
  std::size_t streams = 1;                // environments
  std::size_t stream_capacity_steps = 0;  // of each stream; must be positive
  std::uint64_t seed = 0;                 // of the draws
  std::size_t threads = 1;                // that copy batches
  // Steps that can be added to a full store while somebody holds a view of it; at least 1.
  std::size_t spare_steps = 1;
  // Steps of a segment, where segments can be files. The ring then has a segment more than it
  // needs, as a segment is given up as a whole.
  std::optional<std::size_t> segment_steps;
};

// How far a store has got: what a snapshot holds besides the contents.
struct Progress {
  std::uint64_t steps_added = 0;  // to each stream since the store was new
  std::uint64_t generator = 0;    // the sampler's state
};

// What a file holds of a segment: all steps from the first that is held.
struct SegmentPart {
  std::uint64_t first = 0;  // number of its first step
  std::size_t steps = 0;    // at least 1
  std::uint32_t checksum = 0;
};

class ReplayStore {
 public:
  // `first_field` is the index of the boolean scalar that a batch has set on the first step of
  // every window.
  ReplayStore(std::vector<FieldSpec> fields, std::size_t first_field, const ReplayOptions& options);

  // Adds one step to every stream; columns[f] points to the steps of field f, one after the
  // other in the order of streams.
  void add(const std::byte* const* columns);

  // What is held now.
  View view();
  // Draws windows from a view, or from what is held now where `view` is null, and claims them.
  Draw draw(const BatchShape& shape, const View* view = nullptr);
  // Claims windows that were drawn before. Empty where one of them is not held (any more).
  std::optional<Draw> resume_draw(std::vector<Window> windows, std::size_t length);
  // Copies a draw out (layout as in gather.h), the first step of each window marked as first; the
  // contents keep their own marks. `handles`, if not null, takes batch_size * length numbers that
  // name the steps to write_back.
  void copy(const Draw& draw, std::byte* const* outputs, std::uint64_t* handles) const;
  // The two in one.
  void sample(const BatchShape& shape, std::byte* const* outputs, std::uint64_t* handles = nullptr);

  // Overwrites fields of single steps, in memory only: files are written once. values[f] points to
  // `count` steps of field f, or is null where that field stays. written[i] says whether step
  // handles[i] was still held; the values of one that was not are dropped. Where a handle comes
  // twice, the later values stay. Throws std::out_of_range, having written nothing, for a handle
  // that was never given.
  void write_back(std::size_t count, const std::uint64_t* handles, const std::byte* const* values,
                  bool* written);

  // Copies all contents, outputs[f] being an array of shape (streams, steps, ...) in order of age,
  // and returns the progress that belongs to them. Empty, with nothing copied, where the streams do
  // not hold `steps` steps (any more): size the outputs by steps() and try again.
  std::optional<Progress> snapshot(std::size_t steps, std::byte* const* outputs);

  // Replaces the contents by the newest that fit of those in columns[f], of shape
  // (streams, steps, ...), and takes over the progress.
  void restore(std::size_t steps, const std::byte* const* columns, const Progress& progress);

  // Writes the part that is held of the segment of step number `step`, and syncs the file. Empty,
  // with no file written, where nothing of the segment is held.
  std::optional<SegmentPart> write_segment(std::uint64_t step, const std::string& path);
  // Puts a file that write_segment wrote in the place of a segment's memory, unless the segment is
  // not full yet, or not held whole any more. What was written back since is lost.
  void map_segment(std::uint64_t step, const std::string& path);
  // Puts a file in its place while the store is being filled from files. It is copied, or mapped
  // where it holds a whole segment. `mark_first` marks its first step as first.
  void load_segment(const SegmentPart& part, const std::string& path, bool mark_first);
  // Says which steps were loaded, of which the newest that fit are kept, and sets the generator.
  void finish_loading(std::uint64_t begin, const Progress& progress);

  // Steps held by each stream, and added to each since it was new.
  std::size_t steps() const;
  std::uint64_t steps_added() const;
  std::uint64_t generator() const;

  const std::vector<FieldSpec>& fields() const { return fields_; }
  std::size_t streams() const { return ring_.streams(); }
  // Bytes of one step of one stream, over all fields.
  std::size_t step_bytes() const;

 private:
  friend class Claim;
  Claim claim(std::uint64_t oldest);  // with mutex_ held
  void release(std::uint64_t oldest) noexcept;
  // Waits until no claim reaches back to a step before `step`.
  void await_claims(std::unique_lock<std::mutex>& lock, std::uint64_t step);
  // Where the `steps` steps from `first` on, all of one segment, stand in memory and in a file.
  std::vector<Span> spans(std::uint64_t first, std::size_t steps);
  // With mutex_ held: the newest step is the one before `end`.
  void advance_to(std::uint64_t end);
  void require_segments() const;

  // Holds mutex_ with no claim left; no other is given meanwhile.
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

  std::mutex add_mutex_;      // held by add, restore and finish_loading; taken before mutex_
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable released_;
  SequenceSampler sampler_;
  StepRange held_;
  std::size_t exclusive_ = 0;            // calls that wait to be alone, or are
  std::multiset<std::uint64_t> claims_;  // the oldest step of each
  pid_t claims_process_;
};

}  // namespace replay
