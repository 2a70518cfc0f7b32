#!/bin/sh
# Run a command with each file of /run/secrets as the environment variable of its name: so that passwords stand neither in
# compose.yaml nor in what `docker inspect` shows.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/SLIDEWAY_*; do
    [ -f "$file" ] || continue
    value=$(cat "$file")
    export "$(basename "$file")=$value"
done
exec "$@"
