// Copies windows out of the ring into memory that the caller owns.
//
// Ownership: borrows the ring and the outputs for the length of the call.
// Threads: up to `threads`, the calling one among them, started and joined inside the call, so no
//   thread outlives it and a fork between calls is harmless. Fewer run where a batch is small, or
//   where the system gives no more. The windows' steps must not change during the call.
// Complexity: O(bytes copied). Long pieces go past the cache, where the processor has stores for
//   it, several pages side by side: a batch is larger than the cache that would keep it, and the
//   destination's lines need not be read first (1.3 ms against memcpy's 2.2 ms for 12.6 MB in
//   pieces of 786 KB on one thread, 5.7 against 9.5 for 50 MB).
// Errors: std::out_of_range for a stream that does not exist, before the first byte is written.

#pragma once

#include <cstddef>
#include <vector>

#include "sequence_sampler.h"
#include "step_ring.h"

namespace replay {

// Writes window b of field f to outputs[f] + b * length * step_bytes(f): batch-first arrays of
// shape (windows, length, ...). Each output must hold all its windows, and none may overlap
// another or the ring.
void gather(const StepRing& ring, const std::vector<Window>& windows, std::size_t length,
            std::byte* const* outputs, std::size_t threads);

}  // namespace replay
