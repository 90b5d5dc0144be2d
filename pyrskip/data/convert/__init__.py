"""Converters of files of one's own: llava, parquet, tsv give rows, plan keeps them, conversion writes shards
from it."""
