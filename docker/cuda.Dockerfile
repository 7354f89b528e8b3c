# kd_megatron on NVIDIA GPUs. Written and read over, but not built by CI: please report what does not work.
#   docker build -f docker/cuda.Dockerfile -t kd_megatron:cuda .
#   docker run --gpus all --ipc host -v "$PWD/data:/kd_megatron/data" kd_megatron:cuda --procs 8 study recipes/paper_6l.yaml
#
# torch's wheel from PyPI brings its own CUDA libraries, so the driver of the host and the NVIDIA container toolkit are
# all that is needed; gcc is for the kernels that triton compiles at first use.
FROM python:3.11.7-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git procps iproute2 openssh-client openssh-server pdsh \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /run/sshd

WORKDIR /kd_megatron
COPY . .

# launch.sh makes .venv from the pinned requirements.txt; its first command leaves everything ready.
ENV KD_PIP_ARGS="--no-cache-dir"
RUN ./launch.sh inspect --help

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["./launch.sh"]
CMD ["--help"]
