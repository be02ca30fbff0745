"""One reader per kind of data set; each returns a :class:`pipeline.data.raw.RawSet`."""
