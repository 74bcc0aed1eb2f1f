#include "../batch_queue.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "asleep.h"
#include "check.h"
#include "steps.h"

using replay::BatchQueue;
using replay::ReplayStore;
using replay::Window;

namespace {

std::atomic<bool> others_lack_memory{false};
const std::thread::id first_thread = std::this_thread::get_id();

constexpr std::size_t kStreams = 3;
constexpr std::size_t kBatch = 6;
constexpr std::size_t kLength = 4;
constexpr replay::BatchShape kShape{kBatch, kLength};

ReplayStore make_store(std::size_t capacity, std::uint64_t seed = 1, std::size_t spare_steps = 1) {
  replay::ReplayOptions options;
  options.streams = kStreams;
  options.stream_capacity_steps = capacity;
  options.seed = seed;
  options.threads = 2;
  options.spare_steps = spare_steps;
  return ReplayStore(steps::fields(), steps::kFirst, options);
}

void fill(ReplayStore& store, std::size_t begin, std::size_t end) {
  for (std::size_t step = begin; step < end; ++step) {
    store.add(steps::Step(store.fields(), 0, kStreams, step).columns());
  }
}

// The memory of all slots, and their handles.
class Room {
 public:
  Room(const ReplayStore& store, std::size_t count) : handles_(count) {
    for (std::size_t i = 0; i < count; ++i) {
      outputs_.emplace_back(store.fields(), kBatch * kLength);
      handles_[i].resize(kBatch * kLength);
    }
  }

  std::vector<BatchQueue::Slot> slots() {
    std::vector<BatchQueue::Slot> made;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      std::byte* const* pointers = outputs_[i].pointers();
      made.push_back({{pointers, pointers + steps::fields().size()}, handles_[i].data()});
    }
    return made;
  }

  // Whether a slot holds the windows, each step with its handle.
  bool holds(std::size_t slot, const std::vector<Window>& windows) const {
    for (std::size_t i = 0; i < kBatch * kLength; ++i) {
      const Window& window = windows[i / kLength];
      const std::uint64_t step = window.start + i % kLength;
      if (handles_[slot][i] != step * kStreams + window.stream) return false;
      if (!steps::holds(outputs_[slot], steps::fields(), i, window.stream, step)) return false;
    }
    return outputs_[slot].guards_intact();
  }

 private:
  std::vector<steps::Outputs> outputs_;
  std::vector<std::vector<std::uint64_t>> handles_;
};

}  // namespace

// Every `new` of this program; fails on other threads than the first while these lack memory.
void* operator new(std::size_t bytes) {
  if (others_lack_memory && std::this_thread::get_id() != first_thread) throw std::bad_alloc();
  void* memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

TEST(batches_come_in_the_order_in_which_they_were_drawn_whatever_is_added) {
  for (const std::size_t slots : {1u, 2u, 4u}) {
    ReplayStore store = make_store(9);
    ReplayStore twin = make_store(9);
    fill(store, 0, 9);
    fill(twin, 0, 9);
    Room room(store, slots);
    BatchQueue queue(store, kShape, room.slots());
    std::vector<std::vector<Window>> expected;
    for (std::size_t call = 0; call < 30; ++call) {
      const std::size_t slot = queue.next();
      while (expected.size() < call + slots) {
        expected.push_back(twin.draw(kShape).windows);
      }
      CHECK(room.holds(slot, expected[call]));
      // As many steps as the store holds: all that the pending batches need would be gone.
      const std::size_t begin = 9 + 9 * call;
      fill(store, begin, begin + 9);
      fill(twin, begin, begin + 9);
      CHECK(room.holds(slot, expected[call]));
    }
  }
}

TEST(pending_batches_can_be_resumed) {
  ReplayStore store = make_store(20);
  fill(store, 0, 20);
  Room room(store, 3);
  BatchQueue queue(store, kShape, room.slots());
  CHECK(queue.pending(true).empty());
  queue.next();
  const auto pending = queue.pending(true);
  CHECK(pending.size() == 3 && queue.pending(false).size() == 2);
  const std::uint64_t generator = store.generator();
  Room other_room(store, 3);
  BatchQueue other(store, kShape, other_room.slots());
  CHECK(other.resume({pending.begin() + 1, pending.end()}));
  CHECK(store.generator() == generator);
  CHECK(other_room.holds(other.next(), pending[1]));
  CHECK(other_room.holds(other.next(), pending[2]));
  fill(store, 20, 40);
  CHECK(!other.resume({pending[1]}));
  CHECK(!other.resume({{{0, 30}}}));
  const std::vector<Window> good(kBatch, Window{0, 30});
  CHECK(!other.resume({good, good, good, good}));
}

TEST(no_more_batches_are_resumed_than_slots_are_free) {
  ReplayStore store = make_store(20);
  fill(store, 0, 20);
  Room room(store, 3);
  BatchQueue queue(store, kShape, room.slots());
  queue.next();  // two are pending, and the third slot is the caller's until the next call
  const auto pending = queue.pending(false);
  CHECK(pending.size() == 2);
  CHECK(!queue.resume({pending[0]}));
  CHECK(queue.pending(false).size() == 2);
  CHECK(room.holds(queue.next(), pending[0]));
}

TEST(draws_from_a_view_do_not_see_what_is_added_since) {
  ReplayStore store = make_store(9, 1, 30);
  ReplayStore twin = make_store(9);
  fill(store, 0, 9);
  fill(twin, 0, 9);
  Room room(store, 2);
  BatchQueue queue(store, kShape, room.slots());
  for (std::size_t begin = 9; begin < 200; begin += 20) {
    queue.hold_view();
    std::vector<std::vector<Window>> expected;
    if (begin > 9) expected.push_back(queue.pending(false)[0]);
    std::thread learner([&] {
      for (std::size_t call = 0; call < 4; ++call) {
        const std::size_t slot = queue.next();
        while (expected.size() < call + 2) expected.push_back(twin.draw(kShape).windows);
        CHECK(room.holds(slot, expected[call]));
      }
    });
    fill(store, begin, begin + 20);  // spare steps: none of these waits for the learner
    learner.join();
    queue.release_view();
    fill(twin, begin, begin + 20);
  }
}

TEST(an_add_beyond_the_spare_steps_waits_for_the_view_to_end) {
  ReplayStore store = make_store(9);
  fill(store, 0, 9);
  Room room(store, 2);
  BatchQueue queue(store, kShape, room.slots());
  queue.hold_view();
  fill(store, 9, 10);
  Watched adder([&] { fill(store, 10, 11); });
  Watched writer([&] {  // an exclusive operation: it must not block the queue while it waits
    const std::uint64_t handle = 10;
    const std::byte* values[] = {nullptr, nullptr, nullptr, nullptr};
    bool written = false;
    store.write_back(1, &handle, values, &written);
  });
  CHECK(adder.waits());
  CHECK(writer.waits());
  for (int call = 0; call < 5; ++call) {
    const std::size_t slot = queue.next();
    CHECK(room.holds(slot, queue.pending(true)[0]));
  }
  queue.release_view();
  adder.join();
  writer.join();
  CHECK(store.steps_added() == 11);
}

TEST(a_queue_of_a_store_that_is_too_empty_throws_and_goes_on_later) {
  ReplayStore store = make_store(20);
  fill(store, 0, 3);
  Room room(store, 2);
  BatchQueue queue(store, kShape, room.slots());
  CHECK_THROWS(std::runtime_error, queue.next());
  CHECK(store.generator() == 1);
  fill(store, 3, 4);
  const std::size_t slot = queue.next();
  CHECK(room.holds(slot, queue.pending(true)[0]));
}

TEST(a_closed_queue_throws_and_lets_the_store_go_on) {
  ReplayStore store = make_store(5);
  fill(store, 0, 5);
  Room room(store, 4);
  BatchQueue queue(store, kShape, room.slots());
  queue.next();
  queue.close();
  queue.close();
  CHECK_THROWS(std::runtime_error, queue.next());
  CHECK_THROWS(std::runtime_error, queue.resume({}));
  fill(store, 5, 25);  // would wait for ever on a claim that is left
  CHECK(store.steps_added() == 25);
}

TEST(an_error_of_the_worker_is_thrown_by_every_later_next) {
  ReplayStore store = make_store(20);
  fill(store, 0, 20);
  Room room(store, 2);
  BatchQueue queue(store, kShape, room.slots());
  queue.next();
  others_lack_memory = true;
  bool thrown = false;
  for (int call = 0; call < 3 && !thrown; ++call) {  // the batch drawn ahead may be copied already
    try {
      queue.next();
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
  }
  others_lack_memory = false;
  CHECK(thrown);
  CHECK_THROWS(std::bad_alloc, queue.next());
  queue.close();
  fill(store, 20, 60);  // would wait for ever on a claim that is left
  CHECK(store.steps_added() == 60);
}

TEST(closing_ends_a_wait_of_another_thread) {
  for (int round = 0; round < 20; ++round) {
    ReplayStore store = make_store(50);
    fill(store, 0, 50);
    Room room(store, 3);
    BatchQueue queue(store, kShape, room.slots());
    std::thread sampler([&] {
      try {
        while (true) queue.next();
      } catch (const std::runtime_error&) {
      }
    });
    queue.close();
    sampler.join();
  }
}

TEST(a_forked_process_is_told_that_the_queue_is_not_its_own) {
  ReplayStore store = make_store(20);
  fill(store, 0, 20);
  Room room(store, 2);
  BatchQueue queue(store, kShape, room.slots());
  queue.next();
  while (queue.next() > 1) {
  }
  const pid_t child = fork();
  if (child == 0) {
    int status = 1;
    try {
      queue.next();
    } catch (const std::runtime_error&) {
      fill(store, 20, 60);
      status = store.steps_added() == 60 ? 0 : 2;
    }
    _exit(status);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
}

TEST(an_adder_a_queue_a_writer_and_a_saver_can_work_at_once) {
  ReplayStore store = make_store(32);
  fill(store, 0, 32);
  std::atomic<bool> working{true};
  std::atomic<int> wrong{0};
  std::thread adder([&] {
    for (std::size_t step = 32; step < 1500; ++step) fill(store, step, step + 1);
    working = false;
  });
  std::thread saver([&] {
    steps::Outputs contents(store.fields(), kStreams * 32);
    do {
      const auto progress = store.snapshot(32, contents.pointers());
      if (!progress) {
        ++wrong;
        continue;
      }
      if (!steps::holds(contents, store.fields(), 40, 1, progress->steps_added - 24)) ++wrong;
    } while (working);
  });
  std::thread writer([&] {
    // Writes what stands there already, so that the others' checks hold.
    do {
      const std::uint64_t added = store.steps_added();
      std::vector<std::uint64_t> handles;
      std::vector<std::byte> images;
      for (std::uint64_t step = added - 20; step < added; ++step) {
        handles.push_back(step * kStreams + 2);
        for (std::size_t i = 0; i < store.fields()[0].step_bytes(); ++i) {
          images.push_back(steps::byte_of(2, step, 0, i));
        }
      }
      const std::byte* values[] = {images.data(), nullptr, nullptr, nullptr};
      bool written[20];
      store.write_back(handles.size(), handles.data(), values, written);
    } while (working);
  });
  {
    Room room(store, 3);
    BatchQueue queue(store, kShape, room.slots());
    do {
      const std::size_t slot = queue.next();
      if (!room.holds(slot, queue.pending(true)[0])) ++wrong;
    } while (working);
  }
  adder.join();
  saver.join();
  writer.join();
  CHECK(wrong == 0);
  CHECK(store.steps_added() == 1500);
}

TEST_MAIN()
