#!/bin/sh
# A planned run as an AWS Batch array job: 40 workers, then the last step. Prints the ids of both jobs.
#   nearcast plan shop.toml --work s3://shop-vectors/runs/tonight --workers 40
#   ./aws-batch.sh QUEUE s3://shop-vectors/runs/tonight
set -eu
queue=$1
location=$2
here=$(dirname "$0")
aws batch register-job-definition --cli-input-json "file://$here/aws-batch-definition.json" >/dev/null
work=$(aws batch submit-job --job-name nearcast-work --job-queue "$queue" --job-definition nearcast \
  --array-properties size=40 --parameters "step=work,location=$location" --query jobId --output text)
gather=$(aws batch submit-job --job-name nearcast-gather --job-queue "$queue" --job-definition nearcast \
  --depends-on "jobId=$work" --parameters "step=gather,location=$location" --query jobId --output text)
echo "$work $gather"
