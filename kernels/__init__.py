"""Fused Triton kernels, under the same names and signatures as `mudreamer_fast.reference`."""

if __name__ == "kernels":
    raise ImportError("import this package as mudreamer_fast.kernels")

__all__: list[str] = []
