#include "batch_queue.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace replay {

namespace {

constexpr const char* kClosed = "this queue of batches is closed";

}  // namespace

BatchQueue::BatchQueue(ReplayStore& store, const BatchShape& shape, std::vector<Slot> slots)
    : store_(store), shape_(shape), slots_(std::move(slots)), process_(getpid()) {
  if (slots_.empty()) throw std::invalid_argument("a queue needs room for at least one batch");
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) free_.push_back(slot);
  worker_ = std::thread([this] { work(); });
}

BatchQueue::~BatchQueue() { close(); }

void BatchQueue::Deleter::operator()(BatchQueue* queue) const {
  if (queue->process_ == getpid()) delete queue;
}

void BatchQueue::close() {
  require_own_process();
  std::thread worker;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    worker = std::move(worker_);
  }
  changed_.notify_all();
  if (worker.joinable()) worker.join();
  const std::lock_guard lock(mutex_);
  jobs_.clear();  // releases their claims
}

std::size_t BatchQueue::next() {
  require_own_process();
  const std::lock_guard calling(calls_);
  // mutex_ is not held here: draw() may wait for a call that waits for the worker's claims.
  std::vector<Draw> draws(free_slots(true));
  for (Draw& draw : draws) draw = store_.draw(shape_, view_ ? &*view_ : nullptr);
  std::unique_lock lock(mutex_);
  if (last_) {
    free_.push_back(last_->slot);
    last_.reset();
  }
  enqueue(std::move(draws));
  changed_.wait(lock, [&] { return closed_ || error_ || jobs_.front().done; });
  if (closed_) throw std::runtime_error(kClosed);
  if (error_) std::rethrow_exception(error_);
  last_ = std::move(jobs_.front());
  jobs_.pop_front();
  return last_->slot;
}

void BatchQueue::hold_view(bool handed_over) {
  require_own_process();
  const std::lock_guard calling(calls_);
  view_.reset();
  view_ = store_.view(handed_over);
}

void BatchQueue::release_view() {
  require_own_process();
  const std::lock_guard calling(calls_);
  view_.reset();
}

std::vector<std::vector<Window>> BatchQueue::pending(bool with_last) const {
  require_own_process();
  const std::lock_guard lock(mutex_);
  std::vector<std::vector<Window>> batches;
  if (with_last && last_) batches.push_back(last_->draw.windows);
  for (const Job& job : jobs_) batches.push_back(job.draw.windows);
  return batches;
}

bool BatchQueue::resume(std::vector<std::vector<Window>> batches) {
  require_own_process();
  const std::lock_guard calling(calls_);
  if (batches.size() > free_slots(false)) return false;
  std::vector<Draw> draws;
  for (std::vector<Window>& windows : batches) {
    if (windows.size() != shape_.batch_size) return false;
    std::optional<Draw> draw = store_.resume_draw(std::move(windows), shape_.length);
    if (!draw) return false;
    draws.push_back(std::move(*draw));
  }
  const std::lock_guard lock(mutex_);
  enqueue(std::move(draws));
  return true;
}

std::size_t BatchQueue::free_slots(bool with_last) const {
  const std::lock_guard lock(mutex_);
  if (closed_) throw std::runtime_error(kClosed);
  if (error_) std::rethrow_exception(error_);
  return free_.size() + (with_last && last_ ? 1 : 0);
}

void BatchQueue::enqueue(std::vector<Draw> draws) {
  for (Draw& draw : draws) {
    jobs_.push_back({free_.front(), std::move(draw), false});
    free_.pop_front();
  }
  changed_.notify_all();
}

void BatchQueue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto waiting = [&] {
      return std::find_if(jobs_.begin(), jobs_.end(), [](const Job& job) { return !job.done; });
    };
    changed_.wait(lock, [&] { return closed_ || waiting() != jobs_.end(); });
    if (closed_) return;
    // Insertion and removal at the ends of a deque do not invalidate references to elements.
    Job& job = *waiting();
    const Slot& slot = slots_[job.slot];
    lock.unlock();
    std::exception_ptr error;
    try {
      store_.copy(job.draw, slot.outputs.data(), slot.handles);
    } catch (...) {
      error = std::current_exception();
    }
    job.draw.claim.release();
    lock.lock();
    job.done = true;
    error_ = error;
    if (error_) {
      for (Job& left : jobs_) left.draw.claim.release();  // nobody will copy them
    }
    changed_.notify_all();
    if (error_) return;
  }
}

void BatchQueue::require_own_process() const {
  if (process_ != getpid()) {
    throw std::runtime_error("a forked process cannot use its parent's queue of batches");
  }
}

}  // namespace replay
