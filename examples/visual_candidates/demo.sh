#!/usr/bin/env bash
# Visual candidates for pins, search phrases and home feeds: vectors of pictures, one join, tables, figures, pictures.
# Arguments go to prepare.py: ./demo.sh --pins 3000 --promoted 1000 takes half the time.
set -euo pipefail
cd "$(dirname "$0")"

generator=promoted-pins
log=nearcast/serve.log
service=

stop() {
    if [ -n "$service" ]; then
        kill "$service" 2>/dev/null || true
        wait "$service" 2>/dev/null || true
        service=
    fi
}
trap stop EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }

echo "== 1. Pins, their vectors, and a simulated fortnight of engagement"
python prepare.py "$@"

say "2. nearcast run generator.toml: the 50 promoted pins that look most like each head pin"
nearcast run generator.toml --quiet

say "3. nearcast publish: audit, copy into a store, verify, make current"
nearcast publish generator.toml --quiet

say "4. nearcast table: maps phrases and people to pins, in the same store, without another join"
nearcast table $generator phrases data/searches.parquet --key phrase --item pin --time seconds --half-life 7d --top 20
nearcast table $generator people data/log.parquet --key person --item pin --time seconds --half-life 3d --top 12

say "5. Measures on the held-out day"
python measure.py

say "6. Draw pictures of queries and candidates"
python pictures.py

say "7. nearcast serve: a phrase and a home feed over HTTP"
nearcast serve $generator --port 0 --drain 0.2 --no-samples 2> "$log" &
service=$!
for _ in $(seq 300); do
    url=$(sed -n 's/^serving .* on \(http:.*\)$/\1/p' "$log")
    [ -n "$url" ] && break
    kill -0 "$service" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
python ask.py "$url" --phrase "Dark  BOOTS"
python ask.py "$url" --person 1
stop
