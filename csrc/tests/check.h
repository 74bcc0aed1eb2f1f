// A test program in one header: TEST(claim) { CHECK(...); } ... TEST_MAIN()
//
// A failed CHECK ends its test, not the program; the program fails if any test did, or none ran.

#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> registered;
  return registered;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline int run_all() {
  int failed = 0;
  for (const Test& test : tests()) {
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
    }
  }
  std::printf("%zu passed, %d failed\n", tests().size() - static_cast<std::size_t>(failed), failed);
  return failed != 0 || tests().empty();
}

template <typename Error, typename Call>
void throws(Call call, const std::string& where) {
  try {
    call();
  } catch (const Error&) {
    return;
  }
  throw Failure(where + ": nothing was thrown");
}

}  // namespace check

#define CHECK_WHERE (std::string(__FILE__ ":") + std::to_string(__LINE__))
#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) throw check::Failure(CHECK_WHERE + ": " #condition); \
  } while (false)
#define CHECK_THROWS(error, expression) \
  check::throws<error>([&] { (void)(expression); }, CHECK_WHERE + ": " #expression)
#define TEST(claim)                                                 \
  static void claim();                                              \
  static const check::Registration register_##claim(#claim, claim); \
  static void claim()
#define TEST_MAIN() \
  int main() { return check::run_all(); }
