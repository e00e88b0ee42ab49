"""What is learned, and how it dreams: shapes in, shapes out; no files, no clocks."""
