#include "../replay_store.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "steps.h"

using replay::FieldSpec;
using replay::ReplayStore;

namespace {

constexpr std::size_t kStreams = 3;

ReplayStore make_store(std::size_t capacity, std::uint64_t seed = 1, std::size_t threads = 2) {
  return ReplayStore(steps::fields(), steps::kFirst, kStreams, capacity, seed, threads);
}

void fill(ReplayStore& store, std::size_t begin, std::size_t end) {
  for (std::size_t step = begin; step < end; ++step) {
    store.append(steps::Step(store.fields(), 0, kStreams, step).columns());
  }
}

// The (stream, step) whose bytes stand at `index`, among steps [begin, end).
bool find(const steps::Outputs& outputs, const std::vector<FieldSpec>& fields, std::size_t index,
          std::size_t begin, std::size_t end, std::size_t* stream, std::size_t* step) {
  for (*stream = 0; *stream < kStreams; ++*stream) {
    for (*step = begin; *step < end; ++*step) {
      if (steps::holds(outputs, fields, index, *stream, *step)) return true;
    }
  }
  return false;
}

}  // namespace

TEST(samples_are_consecutive_steps_of_one_stream_and_begin_with_a_mark) {
  ReplayStore store = make_store(23);
  fill(store, 0, 61);
  const std::size_t length = 9;
  steps::Outputs outputs(store.fields(), 40 * length);
  store.sample(40, length, outputs.pointers());
  CHECK(outputs.guards_intact());
  for (std::size_t row = 0; row < 40; ++row) {
    std::size_t stream = 0;
    std::size_t step = 0;
    CHECK(find(outputs, store.fields(), row * length, 61 - 23, 61, &stream, &step));
    for (std::size_t t = 0; t < length; ++t) {
      CHECK(steps::holds(outputs, store.fields(), row * length + t, stream, step + t));
      CHECK(outputs[steps::kFirst][row * length + t] == std::byte(t == 0 || (step + t) % 5 == 0));
    }
  }
}

TEST(a_store_of_exactly_one_window_draws_it_from_every_stream) {
  for (const std::size_t capacity : {8u, 9u}) {
    ReplayStore store = make_store(capacity);
    fill(store, 0, 8);
    steps::Outputs outputs(store.fields(), 8);
    bool seen[kStreams] = {};
    for (int draw = 0; draw < 100; ++draw) {
      store.sample(1, 8, outputs.pointers());
      for (std::size_t stream = 0; stream < kStreams; ++stream) {
        seen[stream] |= steps::holds(outputs, store.fields(), 7, stream, 7);
      }
    }
    for (const bool stream_seen : seen) CHECK(stream_seen);
  }
}

TEST(a_restored_snapshot_draws_what_the_original_would_have) {
  ReplayStore store = make_store(23);
  fill(store, 0, 50);
  steps::Outputs contents(store.fields(), kStreams * 23);
  ReplayStore::Marks marks;
  CHECK(!store.snapshot(22, contents.pointers(), &marks));
  CHECK(store.snapshot(23, contents.pointers(), &marks));
  CHECK(marks.steps_added == 50);
  ReplayStore other = make_store(23, 99);
  fill(other, 500, 511);
  other.restore(23, contents.pointers(), marks);
  CHECK(other.steps() == 23 && other.steps_added() == 50);
  steps::Outputs expected(store.fields(), 7 * 5);
  steps::Outputs drawn(store.fields(), 7 * 5);
  for (std::size_t round = 0; round < 3; ++round) {
    store.sample(7, 5, expected.pointers());
    other.sample(7, 5, drawn.pointers());
    for (std::size_t field = 0; field < store.fields().size(); ++field) {
      CHECK(drawn[field] == expected[field]);
    }
    fill(store, 50 + 4 * round, 54 + 4 * round);
    fill(other, 50 + 4 * round, 54 + 4 * round);
  }
}

TEST(a_smaller_store_restores_the_newest_steps) {
  ReplayStore store = make_store(23);
  fill(store, 0, 20);
  steps::Outputs contents(store.fields(), kStreams * 20);
  ReplayStore::Marks marks;
  CHECK(store.snapshot(20, contents.pointers(), &marks));
  ReplayStore smaller = make_store(6);
  smaller.restore(20, contents.pointers(), marks);
  steps::Outputs kept(store.fields(), kStreams * 6);
  CHECK(smaller.snapshot(6, kept.pointers(), &marks));
  for (std::size_t stream = 0; stream < kStreams; ++stream) {
    for (std::size_t i = 0; i < 6; ++i) {
      CHECK(steps::holds(kept, store.fields(), stream * 6 + i, stream, 14 + i));
    }
  }
}

TEST(a_failed_sample_leaves_outputs_and_generator_alone) {
  ReplayStore store = make_store(23);
  fill(store, 0, 4);
  steps::Outputs outputs(store.fields(), 5);
  CHECK_THROWS(std::runtime_error, store.sample(1, 5, outputs.pointers()));
  CHECK(outputs[0][0] == std::byte{0xA5});
  steps::Outputs contents(store.fields(), kStreams * 4);
  ReplayStore::Marks marks;
  CHECK(store.snapshot(4, contents.pointers(), &marks));
  CHECK(marks.generator == 1);
}

TEST(bad_constructions_are_refused) {
  const auto fields = steps::fields();
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, 0, 5, 1, 1));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, 2, 0, 1, 1));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, 2, 5, 1, 0));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, 0, 2, 5, 1, 1));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, fields.size(), 2, 5, 1, 1));
}

TEST(adders_samplers_and_a_saver_can_work_at_once) {
  // What is checked: no torn step, no window across the write cursor, in whatever order they run.
  ReplayStore store = make_store(64, 1, 3);
  fill(store, 0, 64);
  constexpr std::size_t kLength = 16;
  constexpr std::size_t kBatch = 70;  // past a megabyte, so that helper threads run as well
  constexpr std::size_t kSteps = 400;
  std::atomic<bool> adding{true};
  std::atomic<int> wrong{0};
  const auto sample = [&] {
    steps::Outputs outputs(store.fields(), kBatch * kLength);
    do {
      store.sample(kBatch, kLength, outputs.pointers());
      for (std::size_t row = 0; row < kBatch; row += 23) {
        std::size_t stream = 0;
        std::size_t step = 0;
        const std::size_t last = row * kLength + kLength - 1;
        if (!find(outputs, store.fields(), row * kLength, 0, kSteps, &stream, &step) ||
            !steps::holds(outputs, store.fields(), last, stream, step + kLength - 1)) {
          ++wrong;
        }
      }
    } while (adding);
  };
  const auto save = [&] {
    steps::Outputs contents(store.fields(), kStreams * 64);
    do {
      ReplayStore::Marks marks;
      if (!store.snapshot(64, contents.pointers(), &marks)) ++wrong;
      const std::size_t oldest = static_cast<std::size_t>(marks.steps_added) - 64;
      for (std::size_t i = 0; i < 64; i += 21) {
        if (!steps::holds(contents, store.fields(), 64 + i, 1, oldest + i)) ++wrong;
      }
    } while (adding);
  };
  std::vector<std::thread> threads;
  threads.emplace_back(sample);
  threads.emplace_back(sample);
  threads.emplace_back(save);
  fill(store, 64, kSteps);
  adding = false;
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(store.steps_added() == kSteps);
}

TEST_MAIN()
