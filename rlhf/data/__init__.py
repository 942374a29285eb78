"""Data on the host: files and public sets -> records -> rows of tokens -> batches.  numpy only.

records    the four kinds of record and their checks
formats    files as their authors published them -> records
cache      memory-mapped arrays on disk, shared by fingerprint
sources    `load`: a config's data field -> records
hygiene    dedup, cap per user, splits, disjointness
packing    token sequences -> rows of a fixed length
prepare    records -> rows
batches    rows -> batches, a function of (seed, step) alone
"""
