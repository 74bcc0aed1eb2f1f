// Batches that are copied out ahead of whoever learns from them, by a thread of their own.
//
// What a batch holds is settled when it is drawn, and it is drawn by the caller's thread, inside
// next(): the batches depend on the order of calls alone, never on how fast the copying goes.
//
// Ownership: borrows the store, which must outlive it, and the memory of its slots. A slot's
//   memory is the caller's to read from the return of next() to the next call of it.
// Threads: every method may be called from any thread; calls of next() wait for each other. close()
//   may come at any time: a waiting next() then throws. A forked process has no use of the parent's
//   queue: next() throws there.
// Complexity: next() draws in O(batch) and waits for a copy only where it is not done yet.
// Errors: those of ReplayStore::draw, before anything has changed; std::runtime_error once closed.

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
  // Room for one batch: outputs as in ReplayStore::copy.
  struct Slot {
    std::vector<std::byte*> outputs;
    std::uint64_t* handles = nullptr;
  };

  // Keeps one batch fewer ahead than there are slots: the last is the caller's.
  BatchQueue(ReplayStore& store, const BatchShape& shape, std::vector<Slot> slots);
  ~BatchQueue();
  BatchQueue(const BatchQueue&) = delete;
  BatchQueue& operator=(const BatchQueue&) = delete;

  // Draws a batch into every free slot, the one that was handed out last among them, and hands out
  // the oldest batch: the number of its slot.
  std::size_t next();

  // Has next() draw from what the store holds now until release_view(), whatever is added
  // meanwhile: so that another thread's calls of next() depend on this moment alone.
  void hold_view();
  void release_view();

  // The windows of the batches that are drawn and not handed out, oldest first; `with_last` has
  // those of the one that next() handed out last before them.
  std::vector<std::vector<Window>> pending(bool with_last) const;

  // Draws these windows, each a batch, before any other and without the generator. False, and
  // nothing is drawn, where one of them is not held, or there are more batches than free slots.
  bool resume(std::vector<std::vector<Window>> batches);

  void close();

 private:
  struct Job {
    std::size_t slot = 0;
    Draw draw;
    bool done = false;
  };

  void work();
  // Slots that are free, or are once the caller gives his back.
  std::size_t require_open() const;
  void enqueue(std::vector<Draw> draws);  // with mutex_ held, in free slots
  void require_own_process() const;

  ReplayStore& store_;
  const BatchShape shape_;
  const std::vector<Slot> slots_;
  const pid_t process_;

  std::mutex calls_;  // one caller at a time; taken before mutex_; guards view_
  std::optional<View> view_;
  mutable std::mutex mutex_;  // guards all below; never held while the store may make us wait
  std::condition_variable changed_;
  std::deque<std::size_t> free_;
  std::deque<Job> jobs_;     // oldest first; a job stays in its place when others come or go
  std::optional<Job> last_;  // its windows; the claim has ended
  std::exception_ptr error_;
  bool closed_ = false;
  std::thread worker_;
};

}  // namespace replay
