#!/usr/bin/env bash
# Starts a Docker engine on a Debian machine that has none, and makes a base image where no registry can be reached.
#
#   source test/docker_engine.sh
#
# as root. Where an engine answers already nothing is started. Otherwise Debian's docker.io is installed and an engine
# started on a socket of its own, without a bridge, so containers have the networks `none` and `host` only. The base
# image is made of Debian packages. DOCKER_HOST, DOCKER_BUILDKIT, DOCKER_BUILD_OPTIONS and BASE_IMAGE are set for it.
# The engine's layers stay in PANTHERSEG_DOCKER_ROOT (default /var/lib/pantherseg-docker) for the next run.

start_docker_engine() {
  local run=/tmp/pantherseg-docker
  if docker info >/dev/null 2>&1; then
    return
  fi
  if [[ $(id -u) -ne 0 ]]; then
    echo "error: no Docker engine answers, and only root can start one" >&2
    return 1
  fi
  if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io debootstrap >/dev/null
  fi
  export DOCKER_HOST=unix://$run/docker.sock
  # The client that is found first may have no buildx.
  export DOCKER_BUILDKIT=0 DOCKER_BUILD_OPTIONS="--network host" BASE_IMAGE=local/python:3.11
  mkdir -p "$run"
  if ! docker info >/dev/null 2>&1; then
    rm -f "$run/docker.pid"
    setsid dockerd --data-root "${PANTHERSEG_DOCKER_ROOT:-/var/lib/pantherseg-docker}" --exec-root "$run/exec" \
      --host "$DOCKER_HOST" --pidfile "$run/docker.pid" --iptables=false --bridge=none >"$run/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 60); do
      docker info >/dev/null 2>&1 && break
      sleep 1
    done
    docker info >/dev/null || { tail -n 5 "$run/dockerd.log" >&2 && return 1; }
  fi
  docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || make_base_image
}

# Python 3.11 on Debian bookworm, as the official slim image, with this machine's certificates.
make_base_image() {
  local root
  root=$(mktemp -d)
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" >/dev/null
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  tar -C "$root" -c . | docker import --change 'CMD ["python3"]' - "$BASE_IMAGE" >/dev/null
  rm -rf "$root"
}

start_docker_engine
