"""What `rollcall doctor` looks at. Nothing here changes anything."""
