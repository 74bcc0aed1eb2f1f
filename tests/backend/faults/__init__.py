"""Operations with the faults of a GPU, for the check to find: each module stands in for kernels."""
