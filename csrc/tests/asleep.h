// Whether another thread waits, by what the system says of it.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

// A thread that others look at.
class Watched {
 public:
  template <typename Work>
  explicit Watched(Work work)
      : thread_([this, work] {
          number_ = syscall(SYS_gettid);
          work();
          done_ = true;
        }) {}

  // Returns once it sleeps, as it does when it waits for another, or has ended: true if it sleeps.
  bool waits() const {
    while (!done_) {
      if (number_ != 0 && asleep()) return !done_;
      std::this_thread::yield();
    }
    return false;
  }

  void join() { thread_.join(); }

 private:
  bool asleep() const {
    char path[64];
    std::snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", number_.load());
    std::FILE* file = std::fopen(path, "r");
    if (file == nullptr) return false;
    char facts[256] = {};
    const std::size_t bytes = std::fread(facts, 1, sizeof(facts) - 1, file);
    std::fclose(file);
    // The state is behind the name, which stands in brackets.
    const char* name_end = bytes > 0 ? std::strrchr(facts, ')') : nullptr;
    return name_end != nullptr && name_end[1] == ' ' && name_end[2] == 'S';
  }

  std::atomic<long> number_{0};
  std::atomic<bool> done_{false};
  std::thread thread_;  // last, as it uses the others
};
