#!/usr/bin/env bash
# Similar-item ads from real purchases and coupons: join, publish, expand, serve one request, measure all of them.
set -euo pipefail
cd "$(dirname "$0")"

requests=${1:-}         # number of requests to measure; default: all

say() { printf '\n== %s\n' "$*"; }

say "1. Learn product vectors from the purchases of weeks 1-44; read coupons, campaigns and redemptions"
python ../similar_products/prepare.py --learn-until 44 --hold-out-until 53 --out data
python prepare_ads.py

say "2. nearcast run and publish: the 200 nearest products of every product, in three sizes of index"
for spec in generator-1000.toml generator-5000.toml generator.toml; do
    nearcast run "$spec" --quiet > nearcast-run.log 2>&1 || { cat nearcast-run.log >&2; exit 1; }
    nearcast publish "$spec" --quiet
done
rm -f nearcast-run.log

say "3. nearcast expand: publish the coupons; repeat it after every change"
nearcast expand ads.toml

say "4. One household: its last purchases, and its coupons"
python one_household.py

say "5. The overlay pauses a coupon, and spends the budget of another, within a second"
python one_household.py --pause

say "6. The requests of all households with every variant, against their purchases in weeks 45-53"
python measure.py ${requests:+--requests "$requests"}
echo
echo "The picture is examples/similar_item_ads/nearcast/funnel.svg"
