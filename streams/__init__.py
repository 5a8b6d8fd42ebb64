"""What runs on Kafka, and what its parts and the API share."""
