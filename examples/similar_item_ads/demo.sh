#!/usr/bin/env bash
# Similar-item ads from real purchases and coupons: join, publish, expand, serve one request, measure all of them.
set -euo pipefail
cd "$(dirname "$0")"

requests=${1:-}         # so many requests are measured; all of them by default

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

say "3. nearcast expand: the coupons become current; this is done again whenever they change"
nearcast expand ads.toml

say "4. One household: what it bought last, and the coupons it would be shown"
python one_household.py

say "5. An advertiser pauses a coupon, and another one's budget is spent: in force within a second"
python one_household.py --pause

say "6. Every household's request by every way, and what they did in weeks 45-53"
python measure.py ${requests:+--requests "$requests"}
echo
echo "The picture is examples/similar_item_ads/nearcast/funnel.svg"
