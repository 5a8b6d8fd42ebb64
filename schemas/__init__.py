"""The wire: messages, topics, headers."""
