#include "../replay_store.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "asleep.h"
#include "check.h"
#include "steps.h"
#include "temporary_folder.h"

using replay::FieldSpec;
using replay::ReplayOptions;
using replay::ReplayStore;
using replay::SegmentPart;

namespace {

constexpr std::size_t kStreams = 3;

ReplayOptions options(std::size_t streams, std::size_t capacity, std::uint64_t seed,
                      std::size_t threads, std::optional<std::size_t> segment_steps = {}) {
  ReplayOptions made;
  made.streams = streams;
  made.stream_capacity_steps = capacity;
  made.seed = seed;
  made.threads = threads;
  made.segment_steps = segment_steps;
  return made;
}

ReplayStore make_store(std::size_t capacity, std::uint64_t seed = 1, std::size_t threads = 2,
                       std::optional<std::size_t> segment_steps = {}) {
  return ReplayStore(steps::fields(), steps::kFirst,
                     options(kStreams, capacity, seed, threads, segment_steps));
}

void fill(ReplayStore& store, std::size_t begin, std::size_t end) {
  for (std::size_t step = begin; step < end; ++step) {
    store.add(steps::Step(store.fields(), 0, kStreams, step).columns());
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
  store.sample({40, length}, outputs.pointers());
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
      store.sample({1, 8}, outputs.pointers());
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
  CHECK(!store.snapshot(22, contents.pointers()));
  const auto progress = store.snapshot(23, contents.pointers());
  CHECK(progress && progress->steps_added == 50);
  ReplayStore other = make_store(23, 99);
  fill(other, 500, 511);
  other.restore(23, contents.pointers(), *progress);
  CHECK(other.steps() == 23 && other.steps_added() == 50);
  steps::Outputs expected(store.fields(), 7 * 5);
  steps::Outputs drawn(store.fields(), 7 * 5);
  for (std::size_t round = 0; round < 3; ++round) {
    store.sample({7, 5}, expected.pointers());
    other.sample({7, 5}, drawn.pointers());
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
  const auto progress = store.snapshot(20, contents.pointers());
  CHECK(progress);
  ReplayStore smaller = make_store(6);
  smaller.restore(20, contents.pointers(), *progress);
  steps::Outputs kept(store.fields(), kStreams * 6);
  CHECK(smaller.snapshot(6, kept.pointers()));
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
  CHECK_THROWS(std::runtime_error, store.sample({1, 5}, outputs.pointers()));
  CHECK(outputs[0][0] == std::byte{0xA5});
  steps::Outputs contents(store.fields(), kStreams * 4);
  const auto progress = store.snapshot(4, contents.pointers());
  CHECK(progress && progress->generator == 1);
}

TEST(a_store_tells_the_bytes_of_a_step_over_all_fields) {
  CHECK(make_store(5).step_bytes() == 3 * 17 * 19 + 3 * 4 + 1 + 1);
}

TEST(windows_that_are_not_held_are_not_claimed) {
  ReplayStore store = make_store(10);
  fill(store, 0, 15);  // steps [5, 15) are held
  CHECK(store.resume_draw({{2, 5}, {0, 12}}, 3));
  CHECK(!store.resume_draw({{2, 5}, {3, 5}}, 3));
  CHECK(!store.resume_draw({{2, 5}, {0, 4}}, 3));
  CHECK(!store.resume_draw({{2, 5}, {0, 13}}, 3));
  CHECK(!store.resume_draw({{2, 5}, {0, 16}}, 3));
  fill(store, 15, 40);  // would wait for ever on a claim that is left
  CHECK(store.steps_added() == 40);
}

TEST(a_forked_process_forgets_the_claims_of_its_parent) {
  ReplayStore store = make_store(10);
  fill(store, 0, 10);
  const auto claimed = store.draw({4, 3});
  const pid_t child = fork();
  if (child == 0) {
    store.draw({4, 3});
    fill(store, 10, 40);  // would wait for ever on the parent's claim
    _exit(store.steps_added() == 40 ? 0 : 2);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
}

TEST(bad_constructions_are_refused) {
  const auto fields = steps::fields();
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, options(0, 5, 1, 1)));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, options(2, 0, 1, 1)));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, steps::kFirst, options(2, 5, 1, 0)));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, 0, options(2, 5, 1, 1)));
  CHECK_THROWS(std::invalid_argument, ReplayStore(fields, fields.size(), options(2, 5, 1, 1)));
}

TEST(an_add_waits_for_a_reader_only_where_it_needs_the_readers_steps) {
  ReplayStore store = make_store(10);
  fill(store, 0, 10);
  auto draw = store.resume_draw({{0, 2}, {1, 4}}, 3);
  CHECK(draw);
  fill(store, 10, 13);  // the last of these writes the slot of step 2 - 1
  Watched adder([&] { fill(store, 13, 14); });
  CHECK(adder.waits());
  steps::Outputs outputs(store.fields(), 6);
  store.copy(*draw, outputs.pointers(), nullptr);
  CHECK(steps::holds(outputs, store.fields(), 0, 0, 2));
  draw.reset();
  adder.join();
  CHECK(store.steps_added() == 14);
}

TEST(numbers_that_are_not_finite_are_refused_for_all_streams) {
  const std::vector<FieldSpec> fields = {{"half", replay::DType::kFloat16, {2}},
                                         {"single", replay::DType::kFloat32, {}},
                                         {"double", replay::DType::kFloat64, {3}},
                                         {"bytes", replay::DType::kUint8, {8}},
                                         {"first", replay::DType::kBool, {}}};
  ReplayStore store(fields, 4, options(2, 10, 1, 1));
  std::uint16_t halves[] = {0x7BFF, 0, 0xFBFF, 1};  // the largest, the least
  float singles[] = {3e38f, -3e38f};
  double doubles[] = {1e308, -1e308, 0, 1, 2, 3};
  const std::vector<std::byte> bytes(16, std::byte{0xFF});
  const bool first[2] = {};
  const auto as_bytes = [](const auto* data) { return reinterpret_cast<const std::byte*>(data); };
  const std::byte* columns[] = {as_bytes(halves), as_bytes(singles), as_bytes(doubles),
                                bytes.data(), as_bytes(first)};
  store.add(columns);
  const auto refused = [&](const std::string& start) {
    try {
      store.add(columns);
    } catch (const replay::NonFiniteError& error) {
      return std::string(error.what()).rfind(start, 0) == 0 && store.steps_added() == 1;
    }
    return false;
  };
  halves[3] = 0xFC00;  // minus infinity
  CHECK(refused("'half' of stream 1 must be finite"));
  halves[3] = 0;
  singles[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK(refused("'single' of stream 0 must be finite"));
  singles[0] = 0;
  doubles[3] = std::numeric_limits<double>::infinity();
  CHECK(refused("'double' of stream 1 must be finite"));
  doubles[3] = 0;
  store.add(columns);
  CHECK(store.steps_added() == 2);
}

TEST(a_wait_for_a_view_of_the_same_thread_throws_and_changes_nothing) {
  ReplayStore store = make_store(6);
  fill(store, 0, 6);
  std::optional<replay::View> view = store.view();
  fill(store, 6, 7);  // the spare step
  CHECK_THROWS(std::runtime_error, fill(store, 7, 8));
  CHECK_THROWS(std::runtime_error, store.restore(0, nullptr, {}));
  CHECK(store.steps_added() == 7 && store.steps() == 6);
  steps::Outputs outputs(store.fields(), 6 * 2);
  store.sample({6, 2}, outputs.pointers());  // no exclusive operation is thought to wait
  Watched other([&] { fill(store, 7, 8); });
  CHECK(other.waits());
  view.reset();
  other.join();
  view = store.view(true);
  Watched learner([&] { view.reset(); });
  fill(store, 8, 10);  // may wait for the learner
  learner.join();
  CHECK(store.steps_added() == 10);
}

TEST(a_process_may_fork_while_other_threads_are_in_a_call) {
  ReplayStore store = make_store(6);
  fill(store, 0, 6);
  std::optional<replay::View> view = store.view(true);
  fill(store, 6, 7);
  Watched adder([&] { fill(store, 7, 8); });
  Watched writer([&] { store.write_back(0, nullptr, nullptr, nullptr); });
  std::atomic<bool> working{true};
  std::thread sampler([&] {
    while (working) store.draw({6, 2}, &*view);
  });
  CHECK(adder.waits());
  CHECK(writer.waits());
  int failed = 0;
  for (int round = 0; round < 50; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      fill(store, 7, 20);
      steps::Outputs outputs(store.fields(), 6 * 2);
      store.sample({6, 2}, outputs.pointers());
      store.~ReplayStore();
      _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  working = false;
  sampler.join();
  view.reset();
  adder.join();
  writer.join();
  CHECK(failed == 0);
}

TEST(steps_are_written_back_by_handle_unless_they_are_gone) {
  ReplayStore store = make_store(10);
  fill(store, 0, 10);
  steps::Outputs outputs(store.fields(), 10);
  std::uint64_t handles[10];
  std::byte* const* pointers = outputs.pointers();
  auto draw = store.resume_draw({{1, 0}, {2, 4}}, 5);
  CHECK(draw);
  store.copy(*draw, pointers, handles);
  draw.reset();
  CHECK(handles[0] == 1 && handles[9] == 8 * kStreams + 2);
  fill(store, 10, 13);  // steps 0, 1 and 2 go
  std::vector<std::byte> actions(10 * 12);
  for (std::size_t i = 0; i < actions.size(); ++i) actions[i] = std::byte(i);
  const std::byte* values[] = {nullptr, actions.data(), nullptr, nullptr};
  bool written[10];
  store.write_back(10, handles, values, written);
  for (std::size_t i = 0; i < 10; ++i) CHECK(written[i] == (i >= 3));
  draw = store.resume_draw({{1, 3}, {2, 4}}, 2);
  CHECK(draw);
  store.copy(*draw, pointers, nullptr);
  CHECK(outputs[1][0] == std::byte{3 * 12} && outputs[1][12] == std::byte{4 * 12});
  CHECK(outputs[1][24] == std::byte{5 * 12} && outputs[1][47] == std::byte{7 * 12 - 1});
  CHECK(outputs[0][0] == steps::byte_of(1, 3, 0, 0));  // other fields stay
  draw.reset();
  handles[4] = 13 * kStreams;
  const std::byte nothing{0xEE};
  values[1] = &nothing;  // would be read past its end, were anything written
  CHECK_THROWS(std::out_of_range, store.write_back(10, handles, values, written));
}

TEST(a_store_in_segments_behaves_as_one_without) {
  for (const std::size_t segment_steps : {1u, 4u, 30u}) {
    ReplayStore plain = make_store(23, 5);
    ReplayStore segmented = make_store(23, 5, 2, segment_steps);
    steps::Outputs expected(plain.fields(), 7 * 9);
    steps::Outputs drawn(plain.fields(), 7 * 9);
    for (std::size_t step = 0; step < 150; ++step) {
      fill(plain, step, step + 1);
      fill(segmented, step, step + 1);
      CHECK(plain.steps() == segmented.steps());
      if (step < 8 || step % 3 != 0) continue;
      plain.sample({7, 9}, expected.pointers());
      segmented.sample({7, 9}, drawn.pointers());
      for (std::size_t field = 0; field < plain.fields().size(); ++field) {
        CHECK(drawn[field] == expected[field]);
      }
    }
  }
}

TEST(a_store_filled_from_its_segments_files_draws_what_the_original_would_have) {
  const TemporaryFolder folder;
  ReplayStore store = make_store(23, 5, 2, 4);
  fill(store, 0, 50);
  std::vector<std::pair<SegmentPart, std::string>> files;
  for (std::uint64_t step = 27; step < 50; step = step / 4 * 4 + 4) {
    const std::string path = folder / std::to_string(step).c_str();
    files.emplace_back(store.write_segment(step, path).value(), path);
  }
  CHECK(files.front().first.first == 27 && files.front().first.steps == 1);
  CHECK(files.back().first.first == 48 && files.back().first.steps == 2);
  CHECK(!store.write_segment(23, folder / "gone"));
  for (const auto& [part, path] : files) store.map_segment(part.first, path);
  ReplayStore other = make_store(23, 99, 2, 4);
  for (const auto& [part, path] : files) other.load_segment(part, path, false);
  other.finish_loading(27, {50, store.generator()});
  steps::Outputs expected(store.fields(), 7 * 5);
  steps::Outputs drawn(store.fields(), 7 * 5);
  for (std::size_t round = 0; round < 20; ++round) {
    store.sample({7, 5}, expected.pointers());
    other.sample({7, 5}, drawn.pointers());
    for (std::size_t field = 0; field < store.fields().size(); ++field) {
      CHECK(drawn[field] == expected[field]);
    }
    for (std::size_t row = 0; row < 7; ++row) {
      std::size_t stream = 0;
      std::size_t step = 0;
      const std::size_t end = 50 + 3 * round;
      CHECK(find(drawn, store.fields(), row * 5, end - 23, end, &stream, &step));
    }
    fill(store, 50 + 3 * round, 53 + 3 * round);
    fill(other, 50 + 3 * round, 53 + 3 * round);
  }
}

TEST(a_segment_can_be_marked_as_an_episodes_beginning) {
  const TemporaryFolder folder;
  ReplayStore store = make_store(20, 5, 2, 4);
  fill(store, 0, 12);
  const SegmentPart part = store.write_segment(6, folder / "segment").value();
  ReplayStore other = make_store(20, 5, 2, 4);
  other.load_segment(part, folder / "segment", true);
  other.finish_loading(4, {8, 1});
  steps::Outputs contents(store.fields(), kStreams * 4);
  CHECK(other.snapshot(4, contents.pointers()));
  CHECK(contents[steps::kFirst][0] == std::byte{1} && contents[steps::kFirst][2] == std::byte{0});
  CHECK_THROWS(std::out_of_range, other.load_segment({4, 5, 0}, folder / "segment", false));
  CHECK_THROWS(std::runtime_error, other.load_segment({4, 4, 0}, folder / "segment", false));
  CHECK_THROWS(std::runtime_error, other.load_segment(part, folder / "none", false));
  CHECK_THROWS(std::out_of_range, other.finish_loading(9, {8, 1}));
  ReplayStore in_memory = make_store(20);
  CHECK_THROWS(std::invalid_argument, in_memory.write_segment(0, folder / "none"));
}

TEST(segments_are_written_and_mapped_while_others_add_and_sample) {
  const TemporaryFolder folder;
  ReplayStore store = make_store(40, 1, 2, 8);
  fill(store, 0, 40);
  std::atomic<bool> adding{true};
  std::atomic<int> wrong{0};
  std::thread sampler([&] {
    steps::Outputs outputs(store.fields(), 9 * 11);
    do {
      store.sample({9, 11}, outputs.pointers());
      std::size_t stream = 0;
      std::size_t step = 0;
      if (!find(outputs, store.fields(), 22, 0, 700, &stream, &step) ||
          !steps::holds(outputs, store.fields(), 32, stream, step + 10)) {
        ++wrong;
      }
    } while (adding);
  });
  std::thread flusher([&] {
    for (int number = 0; adding; ++number) {
      const std::uint64_t step = store.steps_added() - 17;
      const std::string path = folder / std::to_string(number).c_str();
      const auto part = store.write_segment(step, path);
      if (part && part->steps == 8) store.map_segment(step, path);
    }
  });
  for (std::size_t step = 40; step < 700; ++step) {
    fill(store, step, step + 1);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  adding = false;
  sampler.join();
  flusher.join();
  CHECK(wrong == 0);
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
      store.sample({kBatch, kLength}, outputs.pointers());
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
      const auto progress = store.snapshot(64, contents.pointers());
      if (!progress) {
        ++wrong;
        continue;
      }
      const std::size_t oldest = static_cast<std::size_t>(progress->steps_added) - 64;
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
