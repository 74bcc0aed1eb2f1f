#include "../sequence_sampler.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "check.h"

using replay::SequenceSampler;
using replay::SplitMix64;
using replay::Window;

TEST(the_generator_follows_its_published_sequence) {
  // The first three numbers of seed 1234567, worked out from the definition with exact integers.
  SplitMix64 generator(1234567);
  CHECK(generator.next() == 6457827717110365317u);
  CHECK(generator.next() == 3203168211198807973u);
  CHECK(generator.next() == 9817491932198370423u);
}

TEST(bounded_numbers_are_uniform_where_a_plain_remainder_is_not) {
  // Of 2^64 values modulo 3 * 2^62, the lowest third comes twice as often as the others.
  const std::uint64_t third = std::uint64_t{1} << 62;
  SplitMix64 generator(5);
  std::size_t counts[3] = {0, 0, 0};
  for (int i = 0; i < 30000; ++i) ++counts[generator.below(3 * third) / third];
  for (const std::size_t count : counts) CHECK(count > 9600 && count < 10400);
}

TEST(every_window_of_every_stream_is_equally_likely) {
  // Steps 5 to 11 of 3 streams: 4 windows of length 4 in each; 200 draws expected of each.
  SequenceSampler sampler(11);
  std::map<std::pair<std::size_t, std::uint64_t>, std::size_t> counts;
  for (const Window& window : sampler.draw(3, {5, 12}, {2400, 4})) {
    CHECK(window.stream < 3 && window.start >= 5 && window.start + 4 <= 12);
    ++counts[{window.stream, window.start}];
  }
  CHECK(counts.size() == 12);
  double chi_square = 0;
  for (const auto& [window, count] : counts) {
    const double difference = static_cast<double>(count) - 200.0;
    chi_square += difference * difference / 200.0;
  }
  CHECK(chi_square < 31.3);  // 11 degrees of freedom, p = 0.001
}

TEST(a_restored_state_goes_on_with_the_same_draws) {
  SequenceSampler sampler(3);
  sampler.draw(2, {0, 100}, {9, 5});
  const std::uint64_t state = sampler.state();
  const auto expected = sampler.draw(2, {0, 100}, {9, 5});
  SequenceSampler other(77);
  other.restore(state);
  const auto drawn = other.draw(2, {0, 100}, {9, 5});
  for (std::size_t i = 0; i < 9; ++i) {
    CHECK(drawn[i].stream == expected[i].stream && drawn[i].start == expected[i].start);
  }
}

TEST(bad_requests_are_refused_without_moving_the_generator) {
  SequenceSampler sampler(3);
  CHECK_THROWS(std::invalid_argument, sampler.draw(1, {0, 10}, {1, 0}));
  CHECK_THROWS(std::invalid_argument, sampler.draw(1, {0, 10}, {0, 1}));
  CHECK_THROWS(std::runtime_error, sampler.draw(2, {0, 10}, {1, 11}));
  CHECK_THROWS(std::runtime_error, sampler.draw(0, {0, 10}, {1, 1}));
  CHECK(sampler.state() == 3);
}

TEST_MAIN()
