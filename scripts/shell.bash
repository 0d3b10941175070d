# Sourced by the scripts beside it: how they speak, how they run what takes long, and how they stop what they started.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# usage: print the comment at the top of the script, and end it.
usage() {
  sed -n '2,/^[^#]/{/^# shellcheck /d;s/^# \{0,1\}//p}' "scripts/${0##*/}" >&2
  exit 2
}

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd -P)

job=      # process group of the command under way
database= # folder of the PostgreSQL this script answers for
serving=  # set: the script ends with the code of its job, also when a signal ended it

# attend COMMAND...: run it in a process group of its own and wait for it. Bash puts a trap off until its foreground
# command has ended; a `wait` it leaves at once, and the trap then ends the whole group.
attend() {
  local code=0
  set -m
  "$@" </dev/null &
  job=$!
  set +m
  wait "$job" || code=$?
  job=
  return "$code"
}

stop_started() {
  local code=$? ended=0
  trap '' INT TERM HUP
  if [ -n "$job" ]; then
    kill -TERM -- "-$job" 2>/dev/null || true
    for _ in {1..250}; do
      kill -0 -- "-$job" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$job" 2>/dev/null || true
    wait "$job" 2>/dev/null || ended=$?
    [ -z "$serving" ] || code=$ended
  fi
  if [ -n "$database" ]; then scripts/postgres stop "$database" || true; fi
  exit "$code"
}
trap stop_started EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# start_database DIR durable|throwaway: sets `dsn`. The database ends with this script, however the script ends.
start_database() {
  database=$1
  # shellcheck disable=SC2034  # for the script that called
  dsn=$(scripts/postgres start "$1" auto "$2" $$) || die "there is no database to work with, see above."
}

need_cargo() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs and try again."
}

# need_packages PROBE PACKAGE...: install Debian packages when the shell command PROBE fails.
need_packages() {
  local probe=$1 sudo=()
  shift
  if eval "$probe" >/dev/null 2>&1; then return; fi
  if [ "$(id -u)" -ne 0 ]; then sudo=(sudo -n); fi
  if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
    say "installing $* with apt-get"
    attend timeout 600 "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
      'apt-get update -qq && apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"' \
      sh "$@" >"$target/apt.log" 2>&1 || tail -n 5 "$target/apt.log" >&2
  fi
  eval "$probe" >/dev/null 2>&1 || die "install $* and try again."
}

# need_unpacked PACKAGE: Debian's package in a folder of that name below target/, so that none of its services start on this
# machine. Fails where it cannot be had.
need_unpacked() {
  local into=$target/$1 sudo=()
  [ ! -d "$into" ] || return 0
  command -v apt-get >/dev/null || return
  if [ "$(id -u)" -ne 0 ]; then sudo=(sudo -n); fi
  say "unpacking $1 in $into"
  rm -rf "$into.new"
  mkdir -p "$into.new"
  # shellcheck disable=SC2016  # expanded by the shell it is for
  attend timeout 300 bash -euc '
    cd "$1"
    apt-get download -qq "$2" || { "${@:3}" apt-get update -qq && apt-get download -qq "$2"; }
    dpkg-deb -x ./*.deb .
    rm ./*.deb' bash "$into.new" "$1" "${sudo[@]}" >"$target/apt.log" 2>&1 || return
  mv "$into.new" "$into"
}

# need_venv DIR REQUIREMENTS: the packages of that file in a Python virtual environment; fails where they cannot be had.
need_venv() {
  if cmp -s "$2" "$1/requirements.txt"; then return; fi
  say "installing $2 in $1"
  rm -rf "$1"
  attend python3 -m venv "$1" || return
  attend timeout 900 "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" || return
  cp "$2" "$1/requirements.txt"
}
