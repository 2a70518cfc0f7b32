#!/bin/sh
# Runs once, when the database is made: a role that may log in and nothing else, and the database that it owns.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$(cat /run/secrets/database-slideway)" --username "$POSTGRES_USER" <<'SQL'
CREATE ROLE slideway LOGIN PASSWORD :'password' NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
CREATE DATABASE slideway OWNER slideway ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE slideway FROM PUBLIC;
SQL
