"""The index directory: its format, writer, reader, and searches over its sketches."""
