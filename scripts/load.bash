# Sourced by scripts/bench and the drills, after scripts/shell.bash: the load generator, services and a database of the
# run's own, on loopback. All of it ends with the script.
# shellcheck shell=bash disable=SC2154  # target, database, dsn: scripts/shell.bash

export SQLX_OFFLINE=true JWT_SECRET=known-to-the-load-generator-only
unset POSTGRES_DSN_FILE DATABASE_URL JWT_SECRET_FILE

services=() # process ids
work=       # folder of the run

# build_auth DIR [PROFILE]: builds the service, for release unless said; sets `work`, `auth`.
build_auth() {
  local profile=${2:-release}
  need_cargo
  need_packages 'command -v psql && command -v pgbench' postgresql postgresql-client
  need_packages 'command -v curl' curl
  work=$target/$1
  rm -rf "$work"
  mkdir -p "$work"
  say "building; the first time this takes a few minutes"
  attend cargo build --profile "$profile" --locked --bin auth || die "the build failed, see above."
  auth=$target/$profile/auth
}

# build_load DIR [PROFILE]: the same, and the load generator; sets `load` as well.
build_load() {
  local profile=${2:-release}
  build_auth "$@"
  attend cargo build --profile "$profile" --locked --bench load --message-format=json >"$work/build.json" ||
    die "the build of the load generator failed, see above."
  load=$(sed -n 's/.*"executable":"\([^"]*\/load-[^"]*\)".*/\1/p' "$work/build.json" | tail -n 1)
  [ -x "$load" ] || die "cargo did not say where the load generator is."
}

# prepare_load DIR [PROFILE]: the same, and starts a PostgreSQL with every durability on; sets `dsn` as well.
prepare_load() {
  build_load "$@"
  start_durable
}

# A PostgreSQL with every durability on; sets `dsn`.
start_durable() {
  start_database "$(mktemp -d "$target/load-postgres.XXXXXX")" durable
  # It keeps its promises as long as it runs; afterwards nobody needs it.
  echo throwaway >"$database/kind"
  export POSTGRES_DSN=$dsn
  "$auth" migrate >/dev/null
}

# start_background NAME COMMAND...: sets `started`, its process id. It ends with the services, and logs into a file of the
# run.
start_background() {
  local log=$work/$1.log
  shift
  "$@" </dev/null >>"$log" 2>&1 &
  started=$!
  services+=("$started")
}

# until_true SECONDS COMMAND...
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# load_while FILE ADDRESS OPTIONS COMMAND [ARGUMENT...]: refreshes and logins at ADDRESS while COMMAND breaks something.
# OPTIONS go to the load generator. Prints its report. Fails where somebody is signed out.
load_while() {
  local report=$1 at=$2 options=$3 code=0 loading
  shift 3
  # shellcheck disable=SC2086  # words
  "$load" through --address "$at" $options >"$report" &
  loading=$!
  services+=("$loading")
  sleep 5
  "$@"
  sleep 3
  kill -TERM "$loading" 2>/dev/null || true
  wait "$loading" || code=$?
  cat "$report"
  return "$code"
}

stop_services() {
  local pid
  for pid in "${services[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${services[@]}"; do wait "$pid" 2>/dev/null || true; done
  services=()
}
# The services go before the database; the script's code is what it was.
stop_all() {
  local code=$?
  set +e
  trap '' INT TERM HUP
  stop_services
  (exit "$code")
  stop_started
}
trap stop_all EXIT

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# start_service [NAME=VALUE...]: sets `service` (its process id) and `address`. It logs into a file of the run.
# shellcheck disable=SC2120  # there need not be any
start_service() { start_service_at "127.0.0.1:$(free_port)" "$@"; }

# start_service_at ADDRESS [NAME=VALUE...]: the same at a given address.
start_service_at() {
  address=$1
  shift
  env APP_ENV=production USERS_LIST_ACCESS=public THROTTLE=off LISTEN_ADDR="$address" "$@" \
    "$auth" serve </dev/null >>"$work/service.log" 2>&1 &
  service=$!
  services+=("$service")
  for _ in {1..400}; do
    if curl -sf -o "$work/health" "http://$address/auth/health"; then return; fi
    kill -0 "$service" 2>/dev/null || break
    sleep 0.05
  done
  tail -n 5 "$work/service.log" >&2
  die "the service did not start, see above."
}

# run_load COMMAND...: prints its line of JSON. Bounded, whatever happens.
run_load() { timeout 900 "$load" "$@"; }

# field NAME <<<JSON: a number of the report, at any depth; the first of that name.
field() { grep -oE "\"$1\":[0-9.]+" | head -n 1 | cut -d: -f2; }

# memory PID VmRSS|VmHWM: in MiB
memory() { awk -v name="$2:" '$1 == name { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }

query() { psql -XqAt -v ON_ERROR_STOP=1 "$dsn" "$@"; }

# The raw limit of everything that hashes passwords.
raw_argon2() { run_load raw-argon2 --threads "$(nproc)" --seconds "$1"; }
