"""Archives and compressed files of strangers, read as streams: nothing is written under a name that they give."""
