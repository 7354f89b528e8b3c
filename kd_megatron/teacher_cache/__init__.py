"""What a frozen teacher says of each window, kept on disk: see docs/teacher_cache.md."""
