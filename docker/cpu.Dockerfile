# kd_megatron on processors. Written and read over, but not built by CI: please report what does not work.
#   docker build -f docker/cpu.Dockerfile -t kd_megatron:cpu .
FROM python:3.11.7-slim-bookworm

# git: commit in fingerprints; procps: launch.sh signals workers; pdsh, ssh, iproute2: several nodes
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git procps iproute2 openssh-client openssh-server pdsh \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /run/sshd

WORKDIR /kd_megatron
COPY . .

# launch.sh makes .venv from the pinned requirements.txt; its first command leaves everything ready.
ENV KD_PIP_ARGS="--no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu"
RUN ./launch.sh inspect --help

ENTRYPOINT ["./launch.sh"]
CMD ["--help"]
