"""From a corpus to verified shards: read -> clean -> tokenize -> write -> verify (docs/data_format.md)."""
