"""Heavy work on rows: plain functions that Ray calls and that run without Ray too. Only here are pyarrow and numpy
imported."""
