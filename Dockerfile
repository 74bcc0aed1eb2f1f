# mudreamer_fast with its simulators, rendering in software or on an NVIDIA GPU.
#
#   docker build -t mudreamer-fast .
#   docker run --rm -v "$PWD/runs:/runs" mudreamer-fast train quick
#
# With CUDA, which PyTorch's wheels bring; the machine has the driver and the NVIDIA Container Toolkit:
#
#   docker build -t mudreamer-fast:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm --gpus all -v "$PWD/runs:/runs" mudreamer-fast:cuda train dmc_vision

ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim-bookworm
# libegl1, libgl1-mesa-dri and libopengl0 draw; Triton compiles its launcher with gcc.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libegl1 libgl1-mesa-dri libopengl0 \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=crafter,export,gym,report
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch==$TORCH" \
    && python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]"
# What a container is given of a GPU: computing, and drawing through EGL.
ENV MUJOCO_GL=egl \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
WORKDIR /
VOLUME /runs
ENTRYPOINT ["mudreamer-fast"]
CMD ["--help"]
