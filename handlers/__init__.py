"""What a record means."""
