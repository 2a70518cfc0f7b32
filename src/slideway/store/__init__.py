"""Remember cases, jobs, outbox, audit and every byte: SQLite on the edge, PostgreSQL in the cloud."""
