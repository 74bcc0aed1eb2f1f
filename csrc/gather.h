// Copies windows from the ring into arrays that the caller owns.
//
// Ownership: borrows the ring and the outputs for the duration of the call.
// Threads: uses up to `threads` threads, including the calling one. It starts and joins them inside
//   the call, so a process may fork between calls. It uses fewer threads for a small batch, or if
//   the system refuses to start more. The copied steps must not change during the call.
// Complexity: O(bytes copied). Long pieces are copied with non-temporal stores, four pages
//   interleaved, where the processor supports them: a batch exceeds the cache, and these stores
//   avoid reading the destination (1.3 ms against memcpy's 2.2 ms for 12.6 MB in pieces of 786 KB
//   on one thread; 5.7 ms against 9.5 ms for 50 MB).
// Errors: std::out_of_range if a stream does not exist; nothing has been written then.

#pragma once

#include <cstddef>
#include <vector>

#include "sequence_sampler.h"
#include "step_ring.h"

namespace replay {

// Writes field f of window b to outputs[f] + b * length * step_bytes(f), that is, to batch-first
// arrays of shape (windows, length, ...). The outputs must not overlap each other or the ring.
void gather(const StepRing& ring, const std::vector<Window>& windows, std::size_t length,
            std::byte* const* outputs, std::size_t threads);

}  // namespace replay
