// Files of segments that are damaged at random: they are refused with an error, or load as steps
// that were added. Meant to run under the sanitizers; MUDREAMER_FUZZ_ROUNDS says how many files.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../replay_store.h"
#include "check.h"
#include "steps.h"
#include "temporary_folder.h"

using replay::ReplayOptions;
using replay::ReplayStore;
using replay::SegmentPart;

namespace {

constexpr std::size_t kStreams = 2;
constexpr std::size_t kSegmentSteps = 8;
constexpr std::size_t kCapacity = 40;

unsigned long rounds() {
  const char* asked = std::getenv("MUDREAMER_FUZZ_ROUNDS");
  return asked == nullptr ? 200 : std::strtoul(asked, nullptr, 10);
}

ReplayOptions options() {
  ReplayOptions made;
  made.streams = kStreams;
  made.stream_capacity_steps = kCapacity;
  made.segment_steps = kSegmentSteps;
  return made;
}

using Bytes = std::vector<char>;

Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void write(const std::string& path, const Bytes& bytes) {
  unlink(path.c_str());
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

class Damage {
 public:
  std::size_t below(std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(generator_);
  }

  // A few bytes changed, removed or put in.
  void of(Bytes& bytes) {
    for (std::size_t times = 1 + below(4); times > 0 && !bytes.empty(); --times) {
      const std::size_t at = below(bytes.size());
      const auto place = bytes.begin() + std::ptrdiff_t(at);
      switch (below(4)) {
        case 0:
          bytes[at] ^= char(1 << below(8));
          break;
        case 1:
          bytes.resize(at);
          break;
        case 2:
          bytes.erase(place);
          break;
        default:
          bytes.insert(place, 1 + below(4096), char(below(256)));
      }
    }
  }

  // Numbers that a manifest may claim.
  void of(SegmentPart& part) {
    const std::uint64_t hostile[] = {0,  1,  7,        8,     9,         39,
                                     40, 48, 1u << 31, ~0ull, ~0ull - 7, 1ull << 63};
    const std::uint64_t number = hostile[below(std::size(hostile))];
    switch (below(3)) {
      case 0:
        part.first = number;
        break;
      case 1:
        part.steps = number;
        break;
      default:
        part.checksum = std::uint32_t(number);
    }
  }

 private:
  std::mt19937_64 generator_{0};
};

}  // namespace

TEST(damaged_files_are_refused_or_hold_steps_that_were_added) {
  const TemporaryFolder folder;
  const auto fields = steps::fields();
  std::vector<SegmentPart> parts;
  std::vector<Bytes> contents;
  {
    ReplayStore store(fields, steps::kFirst, options());
    for (std::size_t step = 0; step < 21; ++step)
      store.add(steps::Step(fields, 0, kStreams, step).columns());
    for (std::size_t step = 0; step < 21; step += kSegmentSteps) {
      parts.push_back(store.write_segment(step, folder / "whole").value());
      contents.push_back(read(folder / "whole"));
      unlink((folder / "whole").c_str());
    }
  }
  Damage damage;
  std::size_t loaded = 0;
  const unsigned long many = rounds();
  for (unsigned long round = 0; round < many; ++round) {
    const std::size_t which = damage.below(parts.size());
    SegmentPart part = parts[which];
    Bytes bytes = contents[which];
    if (damage.below(4) != 0) damage.of(bytes);
    if (damage.below(4) == 0) damage.of(part);
    write(folder / "damaged", bytes);
    ReplayStore store(fields, steps::kFirst, options());
    try {
      store.load_segment(part, folder / "damaged", damage.below(2) == 0);
      store.finish_loading(part.first, {part.first + part.steps, 7});
    } catch (const std::exception&) {
      continue;
    }
    ++loaded;
    // What the checksum vouches for is what was written, wherever it is said to belong.
    const std::size_t held = store.steps();
    CHECK(held == part.steps);
    steps::Outputs outputs(fields, kStreams * held);
    CHECK(store.snapshot(held, outputs.pointers()).has_value());
    CHECK(outputs.guards_intact());
    for (std::size_t step = 0; step < held; ++step) {
      CHECK(steps::holds(outputs, fields, step, 0, parts[which].first + step));
    }
    // and a file that is cut while its steps are in use is an error, or its steps were copies
    CHECK(truncate((folder / "damaged").c_str(), off_t(damage.below(bytes.size() + 1))) == 0);
    try {
      steps::Outputs drawn(fields, 3 * 2);
      store.sample({3, 2}, drawn.pointers());
      CHECK(drawn.guards_intact());
    } catch (const replay::FileError&) {
    } catch (const std::runtime_error&) {  // fewer steps than a window
    }
    store.add(steps::Step(fields, 0, kStreams, 99).columns());
  }
  std::printf("%lu files, %zu of them loaded\n", many, loaded);
  CHECK(many < 100 || (loaded > many / 20 && loaded < many / 2));
}

TEST_MAIN()
