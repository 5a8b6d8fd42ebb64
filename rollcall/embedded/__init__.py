"""Real Kafka and PostgreSQL servers from Python packages and Maven Central alone, without Docker."""
