// A queue of batches that a worker thread copies ahead of their use.
//
// The windows of a batch are drawn by the thread that calls next(); the worker only copies them.
// The contents of the batches therefore depend only on the order of calls, not on timing. A batch
// is pending from its draw until next() returns it.
//
// Ownership: borrows the store, which must outlive the queue, and the memory of the slots. The
//   caller may read the slot that next() returned until its next call of next().
// Threads: every method may be called from any thread; concurrent calls of next() are serialized.
//   close() may be called at any time and makes a waiting next() throw. After a fork the child
//   cannot use the queue: its calls throw. It must not destroy it either, because its locks and its
//   worker are as the fork left them; Deleter leaks it there.
// Complexity: next() draws in O(batch_size) per batch and waits only if the copy is unfinished.
// Errors: those of ReplayStore::draw, with the queue unchanged; std::runtime_error from next() and
//   resume() after close(). An error of ReplayStore::copy stops the worker, and every later next()
//   or resume() throws it; steps can still be added.

#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "replay_store.h"

namespace replay {

class BatchQueue {
 public:
  // Memory for one batch, as ReplayStore::copy takes it; `handles` may be null.
  struct Slot {
    std::vector<std::byte*> outputs;
    std::uint64_t* handles = nullptr;
  };

  struct Deleter {
    void operator()(BatchQueue* queue) const;
  };

  // Keeps slots.size() - 1 batches pending; the caller uses the remaining slot.
  BatchQueue(ReplayStore& store, const BatchShape& shape, std::vector<Slot> slots);
  ~BatchQueue();
  BatchQueue(const BatchQueue&) = delete;
  BatchQueue& operator=(const BatchQueue&) = delete;

  // Frees the slot that was returned last, draws a batch for every free slot, waits until the
  // oldest pending batch is copied and returns the index of its slot.
  std::size_t next();

  // Makes next() draw from the steps that the store holds now until release_view(), regardless of
  // steps added in between. Batches drawn by another thread are thereby reproducible; if that
  // thread also releases the view, it is `handed_over` (ReplayStore::view).
  void hold_view(bool handed_over = false);
  void release_view();

  // The windows of the pending batches, oldest first. With `with_last`, those of the batch that
  // next() returned last precede them.
  std::vector<std::vector<Window>> pending(bool with_last) const;

  // Appends batches of these windows, one batch each, to the pending ones; the generator does not
  // advance. Returns false, with the queue unchanged, if a window is not held or of another size,
  // or if there are more batches than free slots.
  bool resume(std::vector<std::vector<Window>> batches);

  void close();

 private:
  struct Job {
    std::size_t slot = 0;
    Draw draw;
    bool done = false;
  };

  void work();
  // The number of free slots, `with_last` counting the one that next() returned last, which only
  // its next call frees. Throws if the queue is closed.
  std::size_t free_slots(bool with_last) const;
  // Assigns free slots to the draws; the caller holds mutex_.
  void enqueue(std::vector<Draw> draws);
  void require_own_process() const;

  ReplayStore& store_;
  const BatchShape shape_;
  const std::vector<Slot> slots_;
  const pid_t process_;

  std::mutex calls_;  // serializes callers and guards view_; locked before mutex_
  std::optional<View> view_;
  mutable std::mutex
      mutex_;  // guards the members below; never held during calls that the store may block
  std::condition_variable changed_;
  std::deque<std::size_t> free_;
  std::deque<Job> jobs_;     // pending batches, oldest first
  std::optional<Job> last_;  // the batch that next() returned last; its claim is released
  std::exception_ptr error_;
  bool closed_ = false;
  std::thread worker_;
};

}  // namespace replay
