"""Data on the host: files and public sets -> records -> rows of tokens -> batches.  numpy only."""
