#!/bin/sh
# Passwords of compose.yaml in a folder that only its owner enters. Their files are readable by all, since each container
# sees just its own, under another user. What is there stays.
#   sh deploy/make-secrets.sh cloud-secrets
set -eu
folder=${1:?name a folder}
mkdir -p -m 700 "$folder"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -e "$folder/$1" ] || (umask 022 && printf '%s' "$2" > "$folder/$1"); }
keep database-admin "$(random)"
keep database-slideway "$(random)"
keep SLIDEWAY_STORE_URL "postgresql+psycopg://slideway:$(cat "$folder/database-slideway")@database/slideway"
keep SLIDEWAY_S3_KEY "$(random)"
keep SLIDEWAY_S3_SECRET "$(random)"
