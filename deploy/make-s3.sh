#!/bin/sh
# SeaweedFS with one key, which may do everything in it, and the bucket `slideway`.
set -eu
umask 077
printf '{"identities":[{"name":"slideway","credentials":[{"accessKey":"%s","secretKey":"%s"}],"actions":["Admin","Read","Write","List"]}]}' \
    "$(cat /run/secrets/SLIDEWAY_S3_KEY)" "$(cat /run/secrets/SLIDEWAY_S3_SECRET)" > /tmp/s3.json
(until echo "s3.bucket.create -name slideway" | weed shell; do sleep 2; done) &
exec weed server -dir=/data -filer -s3 -s3.port=8333 -s3.config=/tmp/s3.json
